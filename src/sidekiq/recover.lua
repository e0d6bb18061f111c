-- recover.lua: requeues the jobs of a dead process at the head of their queues.
--
-- KEYS  1 `sidebake:owners`   2 `sidebake:suspects`   3 the lease of the owner   4 its in-flight hash
--       5 `sidebake:recoveries`   6 `queues`   7 `sidebake:apart`   8… the lists named by their place
-- ARGV  1 the owner's identity   2 how long a suspect has to come back, ms
--       3 seconds for which recoveries are counted   then pairs: field of the hash, place of its list; newest token first
--
-- Returns "alive", "suspected", "expired" (call again with the fields), or the number of jobs requeued.
--
-- Invariant: nothing is taken from an owner that has a lease. A missing lease makes a suspect first, by Redis' own
-- clock, so an outage of Redis makes no builds start again. An entry is removed after it was pushed, and that it
-- may be removed is tried out before.
--
-- A job that had begun when its worker died is counted: how often it was recovered, how often of that it was the only one that
-- had begun, and when. A job that was fetched, has no history and had not begun is taken for one that had. Jobs that are
-- `<token>:idle` are not counted, since they did not run; none of a worker that was told to stop is.
--
-- A suspect's value is ms since the epoch when it had no lease first; negative when it was told to stop; 0 while it is told to
-- stop and has a lease (renew.lua); -1 when its crash was counted, and jobs were left that could not be requeued.

if redis.call('EXISTS', KEYS[3]) == 1 then return 'alive' end
-- A write that Redis never refuses for lack of memory: after it a script may write at the memory limit as well.
redis.call('HDEL', KEYS[2], '')
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[4]) == 0 then
  -- It left by itself, after it was listed.
  redis.call('HDEL', KEYS[2], ARGV[1])
  return 0
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local since = tonumber(redis.call('HGET', KEYS[2], ARGV[1]))
if not since or since == 0 then
  redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', since and -now or now))
  return 'suspected'
end
if now - math.abs(since) < tonumber(ARGV[2]) then return 'suspected' end

local function has_begun(field)
  return not string.find(field, ':idle', 1, true)
end

redis.call('HDEL', KEYS[4], '')
local n_begun = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[4])) do
  if has_begun(field) then n_begun = n_begun + 1 end
end

-- The values are read in turn.lua, forget.lua and withdraw.lua as well; earlier versions had no second number. After the time
-- comes the run that was counted last: whether it was alone, its worker, and its token.
local function count(text, field)
  local digest, seconds = redis.sha1hex(text), math.floor(now / 1000)
  local value = redis.pcall('HGET', KEYS[5], digest)
  value = type(value) == 'string' and value or ''
  local n, alone, at = string.match(value, '^(%d+) (%d+) (%d+)')
  if not n then n, at = string.match(value, '^(%d+) (%d+)$') end
  if not n or seconds - tonumber(at) >= tonumber(ARGV[3]) then n, alone = 0, 0 end
  local is_alone = n_begun == 1 and 1 or 0
  alone = (tonumber(alone) or 0) + is_alone
  local run = string.format('%d %s %s', is_alone, ARGV[1], field)
  redis.pcall('HSET', KEYS[5], digest, string.format('%d %d %d %s', tonumber(n) + 1, alone, seconds, run))
  redis.pcall('EXPIRE', KEYS[5], ARGV[3])
end

local n = 0
for i = 4, #ARGV, 2 do
  local entry = redis.call('HGET', KEYS[4], ARGV[i])
  local list = KEYS[tonumber(ARGV[i + 1])]
  local found = redis.call('TYPE', list).ok
  if entry and (found == 'none' or found == 'list') then
    local text = string.sub(entry, string.find(entry, '\n', 1, true) + 1)
    redis.call('SADD', KEYS[6], string.sub(list, 7))
    redis.call('RPUSH', list, text)
    redis.call('HDEL', KEYS[4], ARGV[i])
    if since > 0 and has_begun(ARGV[i]) then count(text, ARGV[i]) end
    n = n + 1
  end
end
if redis.call('HLEN', KEYS[4]) > 0 then
  if #ARGV == 3 then return 'expired' end
  redis.call('HSET', KEYS[2], ARGV[1], '-1')
  return n
end
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.pcall('SREM', KEYS[7], ARGV[1])
return n
