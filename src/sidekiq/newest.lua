-- newest.lua: compares a job with the newest one that builds the same, and records it unless that one is newer.
--
-- KEYS  1 `sidebake:newest:<key>`   2 the list of the job; none when it is in flight
-- ARGV  1 when Rails created the job, microseconds   2 its jid   3 what tells its inputs from others, or an empty text
--       4 the record of the job (edition.lua)   5 life of the record, seconds   6 with a list: the text of the job   7 -1: search for it from
--       the head of the list, 1: from the end
--
-- Returns the record of the newer job; false when there is none, or when the job is not in its list any more.
--
-- A waiting job counts only while it waits: one that was removed by hand must not end the others.

local newer = newer_than(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if newer then return newer end
if KEYS[2] and not redis.call('LPOS', KEYS[2], ARGV[6], 'RANK', ARGV[7]) then return false end
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5])
return false
