-- scan.lua: lists the owners for the one process of the fleet that looks for dead ones now.
--
-- KEYS  1 `sidebake:scan`   2 `sidebake:owners`   3 `sidebake:suspects`
-- ARGV  1 for how long no other process scans, ms
--
-- Returns the identities, or an empty list when another process is scanning. The list includes suspects that are not owners any
-- more, so that they are removed too.

-- Redis never refuses HDEL at its memory limit. After it, the script may write as well.
redis.call('HDEL', KEYS[3], '')
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return {} end
local owners = redis.call('SMEMBERS', KEYS[2])
for _, suspect in ipairs(redis.call('HKEYS', KEYS[3])) do
  if redis.call('SISMEMBER', KEYS[2], suspect) == 0 then owners[#owners + 1] = suspect end
end
return owners
