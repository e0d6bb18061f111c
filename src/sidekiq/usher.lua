-- usher.lua: takes a waiting job into custody, beside all slots, that only has to end there: a newer one builds the same, or the result
-- of its twin is known.
--
-- KEYS  1 its list   2 `sidebake:newest:<key>` or `sidebake:twin:<key>`   3 in-flight hash of this process   4 its lease   5 `paused`
-- ARGV  1 incarnation of the lease that the sender knows   2 token   3 queue   4 text   5 when Rails created the job; for "built", when it was
--       enqueued; microseconds
--       6 why it only has to end: "superseded" or "built"   7 its jid   8 what tells its inputs from others, or an empty text
--       9 most jobs that this process may hold, in any state   10 -1: search from the head of the list, 1: from the end
--       11 the same for the newer job   12 text of the newer job; it gets the place of the older one when it waits behind it in the same list
--
-- Returns 1 when the job was taken; 0 when it may have to be built, is not in its list, the queue is paused, this process has no lease
-- or holds enough. Custody finds the entry as it finds one whose reply was lost. It is idle, since the job never runs.
--
-- Invariant: as in turn.lua, the write comes before the removal, and the right to remove is tested before that write.

local function only_ends()
  if ARGV[6] == 'superseded' then return select(2, newer_than(KEYS[2], ARGV[5], ARGV[7], ARGV[8])) end
  local ended = tonumber(redis.call('HGET', KEYS[2], 'ended_us'))
  return ended and tonumber(ARGV[5]) <= ended
end

if string.match(redis.call('GET', KEYS[4]) or '', '^(%x+) ') ~= ARGV[1] then return 0 end
if redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[9]) or redis.pcall('SISMEMBER', KEYS[5], ARGV[3]) == 1 then return 0 end
if not only_ends() then return 0 end
-- Removes nothing, and tests the right to the command and to the list.
redis.call('LREM', 'sidebake:none', '1', '')
redis.call('RPOP', KEYS[1], '0')
local place = redis.call('LPOS', KEYS[1], ARGV[4], 'RANK', ARGV[10])
if not place then return 0 end
local newer = ARGV[12] ~= '' and redis.call('LPOS', KEYS[1], ARGV[12], 'RANK', ARGV[11])
redis.call('HSET', KEYS[3], ARGV[2] .. ':idle', ARGV[3] .. '\n' .. ARGV[4])
-- Jobs are pushed on the left.
local is_behind = newer and newer < place
local replaced = is_behind and redis.pcall('LSET', KEYS[1], string.format('%d', place), ARGV[12])
if type(replaced) == 'table' and replaced.ok then
  redis.call('LREM', KEYS[1], '1', ARGV[12])
else
  redis.call('LREM', KEYS[1], ARGV[10], ARGV[4])
end
return 1
