-- A worker says how it is; workers that have not said so for too long are forgotten.
--
-- KEYS  the hash of workers
-- ARGV  the worker · its report, or nothing when it leaves · seconds after which a silent worker is dead

local now = tonumber(redis.call('TIME')[1])
local reports = redis.call('HGETALL', KEYS[1])
for i = 1, #reports, 2 do
  local at = tonumber(string.match(reports[i + 1], '^%d+'))
  if not at or now - at > tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], reports[i]) end
end
if ARGV[2] == '' then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', now) .. ARGV[2])
return redis.call('EXPIRE', KEYS[1], 3600)
