-- leave.lua: removes a process that has ended from the owners.
--
-- KEYS  1 its lease   2 `sidebake:owners`   3 `sidebake:suspects`   4 its in-flight hash   5 `sidebake:apart`   6 its claims
-- ARGV  1 identity
--
-- Returns 1, or 0 when it has left jobs behind. Then nothing was done; recovery finds the jobs when the lease has expired.

if redis.call('HLEN', KEYS[4]) > 0 then return 0 end
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.pcall('SREM', KEYS[5], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[6])
return 1
