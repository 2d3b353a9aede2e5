-- One change of the registry: a backend is set, or removed if its description is empty; everybody gets a hint.
-- KEYS: backends (hash), version (counter)    ARGV: URL, description, channel
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
local version = redis.call('INCR', KEYS[2])
redis.call('PUBLISH', ARGV[3], version)
return version
