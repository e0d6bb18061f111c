-- scan.lua: the owners, for the one process of the fleet that looks for dead ones now.
--
-- KEYS  1 `sidebake:scan`   2 `sidebake:owners`   3 `sidebake:suspects`
-- ARGV  1 for how long no other process scans, ms
--
-- Returns the identities, or an empty list when another process has the turn. With the owners come suspects that are
-- no owners any more, so that their names go too.

-- A write that Redis never refuses: after it a script may write at the memory limit as well.
redis.call('HDEL', KEYS[3], '')
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return {} end
local owners = redis.call('SMEMBERS', KEYS[2])
for _, suspect in ipairs(redis.call('HKEYS', KEYS[3])) do
  if redis.call('SISMEMBER', KEYS[2], suspect) == 0 then owners[#owners + 1] = suspect end
end
return owners
