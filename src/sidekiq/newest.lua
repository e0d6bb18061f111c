-- newest.lua: compares a job with the newest one that builds the same, and records it unless that one is newer.
--
-- KEYS  1 `sidebake:newest:<key>`   2 the list of the job; none when it is in flight   3 its `it-<jid>`
-- ARGV  1 when Rails created the job, microseconds   2 its jid   3 what tells its inputs from others, or an empty text
--       4 the record of the job (edition.lua)   5 life of the record, seconds   6 with a list: the text of the job   7 -1: search for it
--       from the head of the list, 1: from the end
--
-- Returns the record of the newer job that ends this one; false when there is none.
--
-- A waiting job counts only while it waits and is not cancelled: one that was removed by hand must not end the others.

local newer, is_ended = newer_than(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if newer then return is_ended and newer end
if KEYS[2] and not redis.call('LPOS', KEYS[2], ARGV[6], 'RANK', ARGV[7]) then return false end
if KEYS[3] and redis.pcall('HEXISTS', KEYS[3], 'cancelled') == 1 then return false end
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5])
return false
