-- One change of the registry: a backend is set, or removed if its description is empty; everybody gets a hint.
-- The version is the time of the change, and never goes back: a list that was lost and begun anew is a new version.
-- KEYS: backends (hash), version    ARGV: URL, description, channel
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local version = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[2], version)
redis.call('PUBLISH', ARGV[3], version)
return version
