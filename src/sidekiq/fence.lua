-- fence.lua: whether this process still owns a running job; pushes a callback of that job.
--
-- KEYS  1 in-flight hash of this process   then, to push a callback: 2 `queues`   3 the list
-- ARGV  1 token   2 text of the job as it was fetched   3 text of the callback
--
-- Returns 1 when the entry under the token has the text; then the callback was pushed. Returns 0 otherwise; nothing was done.
--
-- Invariant: a worker that lost a job sends no more callbacks for it. Nothing is removed.

local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry or string.sub(entry, string.find(entry, '\n', 1, true) + 1) ~= ARGV[2] then return 0 end
if KEYS[3] then
  redis.call('SADD', KEYS[2], string.sub(KEYS[3], 7))
  redis.call('LPUSH', KEYS[3], ARGV[3])
end
return 1
