-- recover.lua: requeues the jobs of a dead process at the head of their queues.
--
-- KEYS  1 `sidebake:owners`   2 `sidebake:suspects`   3 the lease of the owner   4 its in-flight hash
--       5 `sidebake:recoveries`   6 `queues`   7 `sidebake:apart`   8 its claims (claims.lua)   9… the lists to push to
-- ARGV  1 the owner's identity   2 how long a suspect has to come back, ms
--       3 seconds for which recoveries are counted   then pairs: field of the hash, index of its list in KEYS; newest token
--         first
--
-- Returns "alive", "suspected", "expired" (call again with the fields), or the number of jobs requeued.
--
-- Invariant: nothing is taken from an owner that has a lease. A missing lease makes a suspect first, by Redis' clock, so an
-- outage of Redis restarts no builds. An entry is pushed before it is removed, and a first HDEL tests the right to remove.
--
-- `sidebake:recoveries` counts jobs that had begun when their worker died. The value is "recoveries, crashes alone, time, whether
-- it was alone (0/1), identity, token": how often the job was recovered, how often of that it was the only job that had begun,
-- when, and the run that was counted last. A fetched job without a history counts as begun. An entry `<token>:idle` did not run,
-- so it is not counted. Jobs of a stopping worker are not counted.
--
-- A suspect's value in `sidebake:suspects` is the time in ms at which it first had no lease. It is negative when the process was
-- stopping. It is 0 while a stopping process has a lease (renew.lua). It is -1 when the crash was counted and some jobs could not
-- be requeued.

if redis.call('EXISTS', KEYS[3]) == 1 then return 'alive' end
-- Redis never refuses HDEL at its memory limit. After it, the script may write as well.
redis.call('HDEL', KEYS[2], '')
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[4]) == 0 then
  -- It left in an orderly way after it was listed.
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

-- turn.lua, forget.lua and withdraw.lua read these values as well. Earlier versions wrote no second number.
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
    -- The customer does not pay for the crash.
    release(KEYS[8], { (string.gsub(ARGV[i], ':idle$', '')) }, false)
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
redis.pcall('DEL', KEYS[8])
return n
