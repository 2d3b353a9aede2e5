-- One decision over any number of quotas: all of them admit, or nothing changes. The rules are those of policy.py, the
-- clock is the server's.
--
-- KEYS     one for each quota: its state, in MessagePack {born, drained at, level, newest bucket, (age, count)…}, oldest
--          first
-- ARGV     mode, want, admitted, then for each quota: limit, window, burst, cost, role; then the news
--   mode     hit: admit up to `want` requests · peek: admit none · charge: take the cost whether it fits or not ·
--            refund: give back a cost that was admitted at the time `admitted` · report: count what a process brings news of
--   role     take: a quota · guard: must have room, gives none (a ban) · strike: counts refusals; the guard after it
--            is taken from when they are too many
--   news     of one quota, in MessagePack: how long ago the process heard of this state; level and (age, units)… of what
--            it has admitted without us since; the same of all that its share counts
-- returns  granted, now, then for each quota: room in the window, room at once, microseconds until there is more,
--          microseconds until another such request fits (0: now, -1: never)

local BUCKETS, ROUNDING, NEVER = 32, 1e-6, -1

local mode, want, admitted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local quotas = {}

local function load(raw, quota)
  quota.width = math.ceil(quota.window / BUCKETS)
  quota.drain = quota.limit / quota.window
  quota.bursty = quota.burst < quota.limit
  quota.newest = math.floor(now / quota.width)
  quota.born, quota.used, quota.level, quota.counts = now, 0, 0, {}
  if not raw then return end
  local state = cmsgpack.unpack(raw)
  -- A clock that was set back takes the past with it: ages are kept, from the newest bucket there is now.
  local newest = math.min(state[4], quota.newest)
  quota.born = state[1]
  for i = 5, #state, 2 do
    local bucket = newest - state[i]
    if bucket >= quota.newest - BUCKETS then
      quota.counts[#quota.counts + 1] = {bucket, state[i + 1]}
      quota.used = quota.used + state[i + 1]
    end
  end
  quota.level = math.max(0, state[3] - math.max(0, now - state[2]) * quota.drain) -- the next tier may have a burst
end

local function spare(quota)
  return quota.bursty and math.floor(quota.burst - quota.level + ROUNDING) or quota.limit - quota.used
end

local function room(quota)
  return math.min(quota.limit - quota.used, spare(quota))
end

local function put(quota, bucket, units)
  local i = #quota.counts
  while i > 0 and quota.counts[i][1] > bucket do i = i - 1 end
  if i > 0 and quota.counts[i][1] == bucket then
    quota.counts[i][2] = quota.counts[i][2] + units
  else
    table.insert(quota.counts, i + 1, {bucket, units})
  end
  quota.used = quota.used + units
  quota.changed = true
end

local function fill(quota, units)
  if quota.bursty then
    quota.level = math.min(quota.level + units, quota.limit)
  end
end

local function add(quota, cost)
  put(quota, quota.newest, cost)
  fill(quota, cost)
end

-- What a process has admitted without us. All that it counts, if we have lost it: the state is younger than our word.
local function learn(quota, heard, alone, all)
  local level, uses = unpack(quota.born > now - heard and all or alone)
  for i = 1, #uses, 2 do
    put(quota, math.floor((now - uses[i]) / quota.width), uses[i + 1])
  end
  fill(quota, level)
end

local function give_back(quota, cost)
  local bucket = math.floor(admitted / quota.width)
  for i, count in ipairs(quota.counts) do
    if count[1] == bucket then
      local back = math.min(cost, count[2])
      count[2] = count[2] - back
      quota.used = quota.used - back
      if count[2] == 0 then table.remove(quota.counts, i) end
      break
    end
  end
  if quota.bursty then
    quota.level = math.max(0, quota.level - math.max(0, cost - math.max(0, now - admitted) * quota.drain))
  end
  quota.changed = true
end

-- The time at which, oldest first, so many units have left the window.
local function leaves(quota, units)
  local bucket = quota.newest
  for _, count in ipairs(quota.counts) do
    bucket = count[1]
    units = units - count[2]
    if units <= 0 then break end
  end
  return (bucket + BUCKETS + 1) * quota.width - now
end

local function wait(quota, cost)
  if cost > quota.burst then return NEVER end
  local result = 0
  local over = quota.used + cost - quota.limit
  if over > 0 then result = leaves(quota, over) end
  if quota.bursty then
    local excess = quota.level + cost - quota.burst
    if excess > ROUNDING then result = math.max(result, math.ceil(excess / quota.drain)) end
  end
  return result
end

local function reset(quota)
  local left = room(quota)
  if left < 0 then return wait(quota, 1) end
  if quota.bursty and left < quota.limit - quota.used then
    return math.max(0, math.ceil((quota.level - math.max(0, quota.burst - left - 1)) / quota.drain))
  end
  return quota.used > 0 and leaves(quota, 1) or 0
end

local function save(key, quota)
  local last = quota.counts[#quota.counts]
  if not last then return redis.call('DEL', key) end
  local state = {quota.born, now, quota.level, last[1]}
  for _, count in ipairs(quota.counts) do
    state[#state + 1] = last[1] - count[1]
    state[#state + 1] = count[2]
  end
  local left = (last[1] + BUCKETS + 1) * quota.width - now
  redis.call('SET', key, cmsgpack.pack(state), 'PX', math.max(1, math.ceil(left / 1000)))
end

local states = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  local a = 3 + (i - 1) * 5
  local quota = {
    limit = tonumber(ARGV[a + 1]), window = tonumber(ARGV[a + 2]), burst = tonumber(ARGV[a + 3]),
    cost = tonumber(ARGV[a + 4]), role = ARGV[a + 5],
  }
  load(states[i], quota)
  quotas[i] = quota
end

local granted, banned = want, false
if mode == 'hit' or mode == 'peek' then
  for _, quota in ipairs(quotas) do
    if quota.role == 'take' then
      granted = math.max(0, math.min(granted, math.floor(room(quota) / quota.cost)))
    elseif quota.role == 'guard' and room(quota) < 1 then
      granted, banned = 0, true
    end
  end
end
if mode == 'hit' then
  for i, quota in ipairs(quotas) do
    if quota.role == 'take' and granted > 0 then
      add(quota, granted * quota.cost)
    elseif quota.role == 'strike' and granted < want and not banned then
      add(quota, want - granted)
      if room(quota) < 1 then add(quotas[i + 1], 1) end
    end
  end
elseif mode == 'charge' then
  for _, quota in ipairs(quotas) do add(quota, quota.cost) end
elseif mode == 'refund' then
  for _, quota in ipairs(quotas) do give_back(quota, quota.cost) end
elseif mode == 'report' then
  learn(quotas[1], unpack(cmsgpack.unpack(ARGV[9])))
end

local reply = {granted, now}
for i, quota in ipairs(quotas) do
  if quota.changed then save(KEYS[i], quota) end
  reply[#reply + 1] = quota.limit - quota.used
  reply[#reply + 1] = spare(quota)
  reply[#reply + 1] = reset(quota)
  reply[#reply + 1] = wait(quota, quota.cost)
end
return reply
