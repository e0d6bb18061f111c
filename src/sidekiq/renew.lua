-- renew.lua: says that this process is alive.
--
-- KEYS  1 its lease   2 `sidebake:owners`   3 `sidebake:suspects`
-- ARGV  1 identity   2 life of the lease, ms   3 incarnation of a lease that is to be made, or empty   4 whether the process
--         was told to stop (0/1)
--
-- Returns the incarnation of the lease, or an empty text when there is none and none is to be made.
--
-- The lease's value is its incarnation, which no other one has, and the number of the last turn (turn.lua). A renewal makes
-- no lease: the network may deliver it when the process has long lost its jobs. One that is made late, by a request that
-- was given up, has an incarnation that no turn was sent under.
--
-- It begins with HDEL, which Redis never refuses for lack of memory; after it a script may write at the memory limit as
-- well, and a full Redis takes no lease away.
--
-- Invariant: a process that holds a lease is among the owners, and among the suspects only as 0: told to stop. A worker that dies
-- after that has not crashed (recover.lua).

local incarnation = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) %d+$')
if not incarnation and ARGV[3] == '' then return '' end
redis.call('HDEL', KEYS[3], ARGV[1])
if ARGV[4] == '1' then redis.call('HSET', KEYS[3], ARGV[1], '0') end
if incarnation then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return incarnation
end
-- Before the lease: the jobs of a process that is not an owner would not be recovered.
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[3] .. ' 0', 'PX', ARGV[2])
return ARGV[3]
