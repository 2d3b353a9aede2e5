-- Ask for the right to fetch something. The reply: 1 if it is granted, else 0, and the token of the lease.
--
-- KEYS[1] the lease
-- ARGV    1 a token, should there be none  2 ms for which nobody else is granted it  3 ms for which it is remembered
--
-- Whoever is granted what another one still works on gets the same token: either may keep what he has first. A write
-- takes the lease away, so that neither keeps what was begun before.
local token = redis.call('GET', KEYS[1])
if token and (token == '-' or redis.call('PTTL', KEYS[1]) > ARGV[3] - ARGV[2]) then
  return { 0, token }
end
token = token or ARGV[1]
redis.call('SET', KEYS[1], token, 'PX', ARGV[3])
return { 1, token }
