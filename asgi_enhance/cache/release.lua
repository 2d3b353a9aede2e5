-- Give back a lease, if it is still one's own, and wake those who wait for it.
--
-- KEYS[1] the lease
-- ARGV    1 its token  2 ms for which nobody shall wait for this any more, or 0  3 the channel of those who wait
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], '-', 'PX', ARGV[2])
end
redis.call('PUBLISH', ARGV[3], KEYS[1])
return 1
