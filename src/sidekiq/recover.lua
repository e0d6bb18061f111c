-- recover.lua: puts the jobs of a dead process back at the head of their queues.
--
-- KEYS  1 `sidebake:owners`   2 `sidebake:suspects`   3 the lease of the owner   4 its in-flight hash
--       5 `sidebake:recoveries`   6 `queues`   7… the lists named by their place
-- ARGV  1 the owner's identity   2 how long a suspect has to come back, ms
--       3 seconds for which recoveries are counted   then pairs: token, place of its list; newest token first
--
-- Returns "alive", "suspected", "expired" (call again with the tokens), or the number of jobs put back.
--
-- Invariant: nothing is taken from an owner that has a lease. A missing lease makes a suspect first, by Redis' own
-- clock, so an outage of Redis makes nobody's builds start again.

if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HDEL', KEYS[2], ARGV[1])
  return 'alive'
end
-- A write that Redis never refuses: after it a script may write at the memory limit as well.
redis.call('HDEL', KEYS[2], '')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local since = redis.call('HGET', KEYS[2], ARGV[1])
if not since then
  redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', now))
  return 'suspected'
end
if now - tonumber(since) < tonumber(ARGV[2]) then return 'suspected' end

local types = { [KEYS[5]] = 'hash', [KEYS[6]] = 'set' }
for key, wanted in pairs(types) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return redis.error_reply('WRONGTYPE ' .. key .. ' is not a ' .. wanted) end
end

-- As in turn.lua: the number and the time.
local function count(digest)
  local seconds = math.floor(now / 1000)
  local n, at = string.match(redis.call('HGET', KEYS[5], digest) or '', '^(%d+) (%d+)$')
  if not n or seconds - tonumber(at) >= tonumber(ARGV[3]) then n = 0 end
  redis.call('HSET', KEYS[5], digest, string.format('%d %d', tonumber(n) + 1, seconds))
  redis.call('EXPIRE', KEYS[5], ARGV[3])
end

local n = 0
for i = 4, #ARGV, 2 do
  local entry = redis.call('HGET', KEYS[4], ARGV[i])
  local list = KEYS[tonumber(ARGV[i + 1])]
  local found = redis.call('TYPE', list).ok
  if entry and (found == 'none' or found == 'list') then
    local text = string.sub(entry, string.find(entry, '\n', 1, true) + 1)
    redis.call('HDEL', KEYS[4], ARGV[i])
    redis.call('SADD', KEYS[6], string.sub(list, 7))
    redis.call('RPUSH', list, text)
    count(redis.sha1hex(text))
    n = n + 1
  end
end
if redis.call('HLEN', KEYS[4]) > 0 then
  if #ARGV == 3 then return 'expired' end
  return n
end
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return n
