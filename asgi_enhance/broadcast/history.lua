-- What the log of a group holds after the position that a process has seen; all of it if the epoch is another.
--
-- KEYS  1 log (stream)  2 meta (hash: e epoch, s offset)
-- ARGV  1 epoch seen  2 offset seen  3 the epoch to begin if one must begin  4 TTL of meta, ms
-- gives {epoch, offset, {{id, {"d", message}}, …}}

local epoch = redis.call('HGET', KEYS[2], 'e')
local offset = tonumber(redis.call('HGET', KEYS[2], 's') or '0')
local seen = tonumber(ARGV[2])

if not epoch or (epoch == ARGV[1] and seen > offset) then
  -- Nothing is known, or a reader has seen more than the log knows: the log has lost its end. What is published from
  -- here on must not be taken for what was lost.
  epoch = ARGV[3]
  redis.call('HSET', KEYS[2], 'e', epoch)
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  redis.call('DEL', KEYS[1])
end

local from = '-'
if epoch == ARGV[1] then
  from = (seen + 1) .. '-0'
end
return {epoch, offset, redis.call('XRANGE', KEYS[1], from, '+')}
