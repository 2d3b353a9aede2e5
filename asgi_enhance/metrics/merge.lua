-- Adds numbers to the records of a hash, each batch of a worker once, however often it is sent.
--
-- KEYS  the hash · where the worker's last batch is remembered
-- ARGV  number of the batch · seconds the hash lives · then pairs: record, what to add to it (MessagePack map of numbers)

local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if tonumber(ARGV[1]) <= last then return 0 end

for i = 3, #ARGV, 2 do
  local raw = redis.call('HGET', KEYS[1], ARGV[i])
  local sums = raw and cmsgpack.unpack(raw) or {}
  for name, number in pairs(cmsgpack.unpack(ARGV[i + 1])) do
    sums[name] = (sums[name] or 0) + number
  end
  redis.call('HSET', KEYS[1], ARGV[i], cmsgpack.pack(sums))
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'EX', 3600)
return 1
