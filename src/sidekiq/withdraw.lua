-- withdraw.lua: takes back crash counts of a worker that was declared dead and is alive: its jobs crashed nothing.
--
-- KEYS  1 `sidebake:recoveries`
-- ARGV  1 the worker's identity   then pairs: token, and sha1 of the text, of each job
--
-- Returns how many counts were taken back.
--
-- Invariant: it takes back only what recover.lua counted of this very run, and once. So a worker that stood still for a while adds
-- no crash to a job and removes none of another run. The time does not change.

-- Redis never refuses HDEL at its memory limit. After it, the script may write as well.
redis.call('HDEL', KEYS[1], '')
local n_withdrawn = 0
for i = 2, #ARGV, 2 do
  local digest = ARGV[i + 1]
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
