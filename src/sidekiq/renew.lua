-- renew.lua: renews or makes the lease of this process.
--
-- KEYS  1 its lease   2 `sidebake:owners`   3 `sidebake:suspects`
-- ARGV  1 identity   2 life of the lease, ms   3 incarnation of a lease to make, or empty   4 whether the process is stopping
--         (0/1)
--
-- Returns the incarnation of the lease, or an empty text when there is none and ARGV 3 is empty.
--
-- The lease's value is its unique incarnation and the number of the last turn (turn.lua). A renewal makes no lease: the network
-- may deliver it long after the process has lost its jobs. A lease that a late request makes has an incarnation that no turn was
-- sent under.
--
-- The script begins with HDEL, which Redis never refuses at its memory limit. After it, the script may write as well, so a full
-- Redis costs no process its lease.
--
-- Invariant: a process that holds a lease is among the owners. It is among the suspects only with the value 0: it is stopping. A
-- stopping worker that dies has not crashed (recover.lua).

local incarnation = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) %d+$')
if not incarnation and ARGV[3] == '' then return '' end
redis.call('HDEL', KEYS[3], ARGV[1])
if ARGV[4] == '1' then redis.call('HSET', KEYS[3], ARGV[1], '0') end
if incarnation then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return incarnation
end
-- Before the lease: recovery does not find the jobs of a process that is not an owner.
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[3] .. ' 0', 'PX', ARGV[2])
return ARGV[3]
