-- withdraw.lua: a worker that was taken for dead lives: the jobs that it lost crashed nothing.
--
-- KEYS  1 `sidebake:recoveries`
-- ARGV  1 whether it was the only job that had begun (0/1)   then the texts of the jobs
--
-- Returns 1.
--
-- Invariant: what recover.lua counted is taken back once, so a worker that stood still for a while condemns no job. The time
-- stays as it is.

for i = 2, #ARGV do
  local digest = redis.sha1hex(ARGV[i])
  local value = redis.pcall('HGET', KEYS[1], digest)
  local n, alone, at = string.match(type(value) == 'string' and value or '', '^(%d+) (%d+) (%d+)$')
  if n == '1' then
    redis.call('HDEL', KEYS[1], digest)
  elseif n then
    local left = math.max(tonumber(alone) - tonumber(ARGV[1]), 0)
    redis.call('HSET', KEYS[1], digest, string.format('%d %d %s', tonumber(n) - 1, left, at))
  end
end
return 1
