-- Note who is in a group and who has left it; entries that are not renewed expire.
--
-- KEYS  1 presence (sorted set: member by time of expiry, ms)
-- ARGV  1 TTL, ms  2… "+member" or "-member"

local time = redis.call('TIME') -- the server's clock: those of the processes may differ
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for i = 2, #ARGV do
  local member = string.sub(ARGV[i], 2)
  if string.sub(ARGV[i], 1, 1) == '+' then
    redis.call('ZADD', KEYS[1], now + ARGV[1], member)
  else
    redis.call('ZREM', KEYS[1], member)
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
