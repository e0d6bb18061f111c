-- ahead.lua: replaces the copies of jobs that the scout found far behind in a queue.
--
-- KEYS  1 `sidebake:ahead:<queue>`
-- ARGV  1 life of the copies, ms   then for each copy: whether it was there before (0/1), text
--
-- The workers remove copies of jobs that they have taken, or have not found. Those do not come back.

local left = {}
for _, text in ipairs(redis.call('LRANGE', KEYS[1], '0', '-1')) do left[text] = true end
-- Redis never refuses DEL at its memory limit. After it, the script may write as well.
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do
  if ARGV[i] == '0' or left[ARGV[i + 1]] then redis.call('RPUSH', KEYS[1], ARGV[i + 1]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
