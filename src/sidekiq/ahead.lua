-- ahead.lua: replaces the copies of jobs that the scout found far behind in a queue.
--
-- KEYS  1 `sidebake:ahead:<queue>`
-- ARGV  1 life of the copies, ms   then the texts
--
-- The workers remove copies of jobs that they have taken, or have not found.

-- Redis never refuses DEL at its memory limit. After it, the script may write as well.
redis.call('DEL', KEYS[1])
for i = 2, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
