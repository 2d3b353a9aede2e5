-- The registry, if it is not the version the reader has. Without a version there is no registry (yet, or any more).
-- KEYS: backends (hash), version    ARGV: the version the reader has
local version = redis.call('GET', KEYS[2]) or ''
if version == ARGV[1] then
  return {version}
end
return {version, redis.call('HGETALL', KEYS[1])}
