-- Record purges: numbered facts, which readers hold against the number an entry was asked for at.
--
-- KEYS[1] the purges, a sorted set: fact by number
-- ARGV    1 the channel to tell them on  2 how many are kept  3 "everything", as a fact  4… the facts
--
-- Numbers come from the clock, so that they go on rising should the set be lost.
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
local before = last[2] or '0'
local time = redis.call('TIME')
local number = math.max(tonumber(before), time[1] * 1000000 + time[2])
for i = 4, #ARGV do
  number = number + 1
  redis.call('ZADD', KEYS[1], string.format('%.0f', number), ARGV[i])
end

-- Too many: the oldest are folded into "everything up to this number", which is the oldest itself from then on
local surplus = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[2])
if surplus > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[1], surplus + 1)
  redis.call('ZADD', KEYS[1], 'GT', oldest[#oldest], ARGV[3])
end
redis.call('PUBLISH', ARGV[1], before .. ' ' .. string.format('%.0f', number))
return string.format('%.0f', number)
