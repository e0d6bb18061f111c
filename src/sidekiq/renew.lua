-- renew.lua: says that this process is alive.
--
-- KEYS  1 its lease   2 `sidebake:owners`   3 `sidebake:suspects`
-- ARGV  1 identity   2 life of the lease, ms   3 number of the last turn that was sent
--
-- Returns 1 when the lease was renewed, 0 when it was gone and has been made anew.
--
-- The lease's value is the number of the last turn (turn.lua); one that is made anew has it as well, or a turn that was
-- given up long ago could still be delivered.
--
-- It begins with HDEL, which Redis never refuses; after it a script may write at the memory limit as well, and a full
-- Redis takes nobody's lease away.
--
-- Invariant: whoever holds a lease is among the owners and not among the suspects.

redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 1 then return 1 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
return 0
