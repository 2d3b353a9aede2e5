-- Keep one variant of a URL, unless the URL was written to since its response was asked for.
--
-- KEYS[1] the URL: "f" the fence (when it was written to, if lately), "g" the generation of what users have of their own
-- KEYS[2] the variants, a hash: "o" the fields in the order they were stored, "s" the Varys in use (the latest first),
--         and one field a variant. The same as the URL's, or a user's own, which also has its "g".
-- ARGV    1 the fence as it was  2 the field  3 the frame  4 its time to live in ms  5 its Vary  6 variants at most
local url, place, ttl = KEYS[1], KEYS[2], tonumber(ARGV[4])
if (redis.call('HGET', url, 'f') or '0') ~= ARGV[1] then
  return 0
end
if place ~= url then
  -- A write to the URL takes its generation away, and with that all that any user has, however many there are
  local generation = redis.call('HGET', url, 'g')
  if not generation then
    local time = redis.call('TIME')
    generation = string.format('%d%06d', time[1], time[2])
    redis.call('HSET', url, 'g', generation)
  end
  if redis.call('HGET', place, 'g') ~= generation then
    redis.call('UNLINK', place)
    redis.call('HSET', place, 'g', generation)
  end
  if redis.call('PTTL', url) < ttl then
    redis.call('PEXPIRE', url, 2 * ttl) -- twice, so that it does not change with each user's response
  end
end
local kept = redis.call('HMGET', place, 'o', 's')
local limit = tonumber(ARGV[6])
local order = kept[1] and cmsgpack.unpack(kept[1]) or {}
if order[#order] ~= ARGV[2] then
  for i, field in ipairs(order) do
    if field == ARGV[2] then
      table.remove(order, i)
      break
    end
  end
  order[#order + 1] = ARGV[2]
end
while #order > limit do
  redis.call('HDEL', place, table.remove(order, 1))
end

local varies = kept[2] and cmsgpack.unpack(kept[2]) or {}
if varies[1] ~= ARGV[5] then
  local latest = { ARGV[5] }
  for _, vary in ipairs(varies) do
    if vary ~= ARGV[5] and #latest < 4 then
      latest[#latest + 1] = vary
    end
  end
  varies = latest
end

redis.call('HSET', place, 'o', cmsgpack.pack(order), 's', cmsgpack.pack(varies), ARGV[2], ARGV[3])
if redis.call('PTTL', place) < ttl then
  redis.call('PEXPIRE', place, ARGV[4])
end
return 1
