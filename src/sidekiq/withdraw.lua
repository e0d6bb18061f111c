-- withdraw.lua: a worker that was taken for dead lives: the jobs that it lost crashed nothing.
--
-- KEYS  1 `sidebake:recoveries`
-- ARGV  1 the worker's identity   then pairs: token and text of each job
--
-- Returns how many counts were taken back.
--
-- Invariant: only what recover.lua counted of this very run is taken back, and once, so a worker that stood still for a while
-- condemns no job, and clears none. The time stays as it is.

-- Redis never refuses it for lack of memory; after it a script may write at the memory limit as well.
redis.call('HDEL', KEYS[1], '')
local n_withdrawn = 0
for i = 2, #ARGV, 2 do
  local digest = redis.sha1hex(ARGV[i + 1])
  local value = redis.pcall('HGET', KEYS[1], digest)
  local n, alone, at, was_alone, run =
    string.match(type(value) == 'string' and value or '', '^(%d+) (%d+) (%d+) ([01]) (.*)$')
  if n and run == ARGV[1] .. ' ' .. ARGV[i] then
    if n == '1' then
      redis.call('HDEL', KEYS[1], digest)
    else
      local left = tonumber(alone) - tonumber(was_alone)
      redis.call('HSET', KEYS[1], digest, string.format('%d %d %s', tonumber(n) - 1, left, at))
    end
    n_withdrawn = n_withdrawn + 1
  end
end
return n_withdrawn
