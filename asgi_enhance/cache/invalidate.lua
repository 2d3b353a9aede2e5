-- A URL was written to: forget its variants, and refuse those whose responses were asked for before.
--
-- KEYS[1] the variants of the URL
-- ARGV[1] how long its fence stands, in ms: longer than any response takes to make
--
-- The fence is a time and no count: one that has expired must not come back as it was.
redis.call('UNLINK', KEYS[1])
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'f', string.format('%d%06d', time[1], time[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
