-- due.lua: moves one due job from the retry set or the schedule to its queue.
--
-- KEYS  1 the set   2 `queues`   3 the list
-- ARGV  1 the member as it is in the set   2 the text to push
--
-- Returns 1 when the job was moved, 0 when somebody else had taken it.
--
-- Invariant: only what was removed is pushed, so a job moves once however many pollers see it.

for key, wanted in pairs({ [KEYS[2]] = 'set', [KEYS[3]] = 'list' }) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return redis.error_reply('WRONGTYPE ' .. key .. ' is not a ' .. wanted) end
end
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('SADD', KEYS[2], string.sub(KEYS[3], 7))
redis.call('LPUSH', KEYS[3], ARGV[2])
return 1
