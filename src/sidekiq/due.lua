-- due.lua: moves one due job from the retry set or the schedule to its queue.
--
-- KEYS  1 the set   2 `queues`   3 the list
-- ARGV  1 the member as it is in the set   2 the text to push   3 a text that is no member of any set
--
-- Returns 1 when the job was moved, 0 when another poller had moved it; an error REFUSED when it cannot be pushed.
--
-- Invariant: one step pushes and removes, so a job moves once however many pollers see it. The push comes before the removal,
-- and a first ZREM tests the right to remove, so a refusal leaves the job where it was.

if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
-- Removes nothing. After this write Redis refuses no other write of the script at its memory limit.
redis.call('ZREM', KEYS[1], ARGV[3])
local named = redis.pcall('SADD', KEYS[2], string.sub(KEYS[3], 7))
local pushed = type(named) == 'table' and named or redis.pcall('LPUSH', KEYS[3], ARGV[2])
-- A separate error code, since Redis 6 has its code in the middle of the text.
if type(pushed) == 'table' then return redis.error_reply('REFUSED ' .. KEYS[3] .. ': ' .. pushed.err) end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
