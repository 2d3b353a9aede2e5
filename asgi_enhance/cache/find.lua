-- What a user has of a URL: the reply is the Varys in use, the fence of the URL, and the fields that were asked for.
--
-- KEYS[1] the URL  KEYS[2] the user's own; see store.lua
-- ARGV    the fields
local url = redis.call('HMGET', KEYS[1], 'f', 'g')
local found = redis.call('HMGET', KEYS[2], 's', 'g', unpack(ARGV))
if found[2] ~= url[2] then
  return { false, url[1] } -- the URL was written to since
end
found[2] = url[1]
return found
