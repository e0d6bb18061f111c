-- announce.lua: pushes a callback while the job is still ours.
--
-- KEYS  1 in-flight hash of this process   2 `queues`   3 the list
-- ARGV  1 token   2 the callback's text
--
-- Returns 1 when it was pushed, 0 when the job is not ours any more.
--
-- Invariant: a worker that was taken for dead says nothing more about the job.

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
for key, wanted in pairs({ [KEYS[2]] = 'set', [KEYS[3]] = 'list' }) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return redis.error_reply('WRONGTYPE ' .. key .. ' is not a ' .. wanted) end
end
redis.call('SADD', KEYS[2], string.sub(KEYS[3], 7))
redis.call('LPUSH', KEYS[3], ARGV[2])
return 1
