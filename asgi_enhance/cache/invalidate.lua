-- A URL was written to: forget its variants, and refuse those whose responses were asked for before.
--
-- KEYS[1] the variants of the URL  KEYS[2] its fence
-- ARGV[1] how long the fence stands, in ms: longer than any response takes to make
redis.call('UNLINK', KEYS[1])
redis.call('INCR', KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
