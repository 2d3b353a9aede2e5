-- What the log of a group holds after the position that a process has seen; all of it if the epoch is another.
--
-- KEYS  1 log (stream, its ids are offset-mark)  2 meta (hash: e epoch, s offset)
-- ARGV  1 epoch seen  2 offset seen  3 the mark of the message there, or nothing  4 the epoch to begin if one must begin
--       5 TTL of meta, ms
-- gives {epoch, offset, {{id, {"d", message}}, …}}

local epoch = redis.call('HGET', KEYS[2], 'e')
local offset = tonumber(redis.call('HGET', KEYS[2], 's') or '0')
local seen = tonumber(ARGV[2])

local function has_lost_its_end()
  if seen > offset then
    return true
  end
  local there = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
  return ARGV[3] ~= '' and there and there[1] ~= ARGV[2] .. '-' .. ARGV[3]
end

if not epoch or (epoch == ARGV[1] and has_lost_its_end()) then
  -- Nothing is known, or a reader has seen more than the log knows, or another message in the same place. What is
  -- published from here on, or was since, must not be taken for what was lost.
  epoch = ARGV[4]
  redis.call('HSET', KEYS[2], 'e', epoch)
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
  redis.call('DEL', KEYS[1])
end

local from = '-'
if epoch == ARGV[1] then
  from = (seen + 1) .. '-0'
end
return {epoch, offset, redis.call('XRANGE', KEYS[1], from, '+')}
