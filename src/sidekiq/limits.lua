-- limits.lua: exchanges the limits of tenants between the workers of a fleet.
--
-- KEYS  1 `sidebake:limits`, a sorted set: limits as JSON, by the time at which a worker with them was last seen, in seconds
-- ARGV  1 the limits of this worker as JSON; empty without limits   2 seconds after which limits count no more
--
-- Returns all limits that count.

local now = tonumber(redis.call('TIME')[1])
-- Redis never refuses it at its memory limit. After it, the script may write as well.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%d', now - tonumber(ARGV[2])))
if ARGV[1] ~= '' then
  redis.call('ZADD', KEYS[1], string.format('%d', now), ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return redis.call('ZRANGE', KEYS[1], '0', '-1')
