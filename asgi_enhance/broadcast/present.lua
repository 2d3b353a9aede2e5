-- Who is in a group.
--
-- KEYS  1 presence (sorted set: member by time of expiry, ms)
-- gives the members that have not expired

local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), '+inf')
