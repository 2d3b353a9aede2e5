-- Append a message to the log of a group and publish it with its position; once for each idempotency key.
--
-- KEYS  1 log (stream)  2 meta (hash: e epoch, s offset)  3 channel  4 what the idempotency key has led to, if there is one
-- ARGV  1 message  2 size of the log  3 its TTL, ms  4 TTL of meta, ms  5 the epoch to begin if there is none
--       6 its mark, a number: it tells the message from one of the same offset that a failover has lost
-- gives "epoch:offset"; published is "epoch:offset-mark", a NUL, and the message

if KEYS[4] then
  local known = redis.call('GET', KEYS[4])
  if known then
    return known
  end
end

local epoch = redis.call('HGET', KEYS[2], 'e')
if not epoch then
  epoch = ARGV[5]
  redis.call('HSET', KEYS[2], 'e', epoch)
end
local offset = redis.call('HINCRBY', KEYS[2], 's', 1)
redis.call('PEXPIRE', KEYS[2], ARGV[4])

if offset == 1 then
  -- meta was evicted and the log was not: its numbers would be in the way
  redis.call('DEL', KEYS[1])
end
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[2], offset .. '-' .. ARGV[6], 'd', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])

local position = epoch .. ':' .. offset
if KEYS[4] then
  redis.call('SET', KEYS[4], position, 'PX', ARGV[3])
end
redis.call('SPUBLISH', KEYS[3], position .. '-' .. ARGV[6] .. '\0' .. ARGV[1])
return position
