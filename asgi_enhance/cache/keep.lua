-- Keep what was computed, unless somebody has taken away the lease it was computed under: to write or delete the value.
--
-- KEYS[1] the value  KEYS[2] the lease
-- ARGV    1 the lease's token  2 the frame  3 its time to live in ms
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
