-- Keep one variant of a URL, unless the URL was written to since its response was asked for.
--
-- KEYS[1] the variants of the URL, a hash: "o" the fields in the order they were stored, "s" the Varys in use (the
--         latest first), "f" the fence (when it was written to, if lately), and one field a variant
-- ARGV    1 the fence as it was  2 the field  3 the frame  4 its time to live in ms  5 its Vary  6 variants at most
local kept = redis.call('HMGET', KEYS[1], 'o', 's', 'f')
if (kept[3] or '0') ~= ARGV[1] then
  return 0
end
local limit = tonumber(ARGV[6])
local order = kept[1] and cmsgpack.unpack(kept[1]) or {}
if order[#order] ~= ARGV[2] then
  for i, field in ipairs(order) do
    if field == ARGV[2] then
      table.remove(order, i)
      break
    end
  end
  order[#order + 1] = ARGV[2]
end
while #order > limit do
  redis.call('HDEL', KEYS[1], table.remove(order, 1))
end

local varies = kept[2] and cmsgpack.unpack(kept[2]) or {}
if varies[1] ~= ARGV[5] then
  local latest = { ARGV[5] }
  for _, vary in ipairs(varies) do
    if vary ~= ARGV[5] and #latest < 4 then
      latest[#latest + 1] = vary
    end
  end
  varies = latest
end

redis.call('HSET', KEYS[1], 'o', cmsgpack.pack(order), 's', cmsgpack.pack(varies), ARGV[2], ARGV[3])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return 1
