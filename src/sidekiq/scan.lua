-- scan.lua: the owners, for the one process of the fleet that looks for dead ones now.
--
-- KEYS  1 `sidebake:scan`   2 `sidebake:owners`   3 `sidebake:suspects`
-- ARGV  1 for how long no other process scans, ms
--
-- Returns the identities, or an empty list when it is somebody else's turn.

-- A write that Redis never refuses: after it a script may write at the memory limit as well.
redis.call('HDEL', KEYS[3], '')
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return {} end
return redis.call('SMEMBERS', KEYS[2])
