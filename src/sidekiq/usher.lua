-- usher.lua: takes a waiting job into custody, beside all slots, when a newer one builds the same. It only ends there.
--
-- KEYS  1 its list   2 `sidebake:newest:<key>`   3 in-flight hash of this process   4 its lease   5 `paused`
-- ARGV  1 incarnation of the lease that the sender knows   2 token   3 queue   4 text   5 when Rails created the job, microseconds
--       6 its jid
--
-- Returns 1 when the job was taken; 0 when no newer job is known, the job is not in its list, the queue is paused, or this process has
-- no lease. Custody finds the entry as it finds one whose reply was lost.
--
-- Invariant: as in turn.lua, the write comes before the removal, and the right to remove is tested before that write.

if string.match(redis.call('GET', KEYS[4]) or '', '^(%x+) ') ~= ARGV[1] then return 0 end
if redis.call('SISMEMBER', KEYS[5], ARGV[3]) == 1 or not newer_than(KEYS[2], ARGV[5], ARGV[6]) then return 0 end
-- Removes nothing, and tests the right to the command and to the list.
redis.call('LREM', 'sidebake:none', '1', '')
redis.call('RPOP', KEYS[1], '0')
if not redis.call('LPOS', KEYS[1], ARGV[4]) then return 0 end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3] .. '\n' .. ARGV[4])
redis.call('LREM', KEYS[1], '-1', ARGV[4])
return 1
