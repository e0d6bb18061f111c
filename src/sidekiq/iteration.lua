-- iteration.lua: shows how far running jobs are, and asks whether they are cancelled.
--
-- KEYS  1 in-flight hash of this process   2… `it-<jid>` of each job
-- ARGV  1 seconds for which the hashes are kept   then for each job: token, number of the attempt, what is shown (JSON text;
--         empty when nothing is new), seconds since it began
--
-- Returns a list: 1 for each job that somebody has cancelled, else 0.
--
-- Invariant: a worker that has lost a job writes nothing about it, or it would bring back what settling has removed.

local cancelled = {}
for i = 2, #KEYS do
  local first = 2 + (i - 2) * 4
  if ARGV[first + 2] ~= '' and redis.call('HEXISTS', KEYS[1], ARGV[first]) == 1 then
    -- A key of another type is nobody's but costs no job anything.
    local shown = redis.pcall('HSET', KEYS[i], 'ex', ARGV[first + 1], 'c', ARGV[first + 2], 'rt', ARGV[first + 3])
    if type(shown) == 'number' then redis.call('EXPIRE', KEYS[i], ARGV[1]) end
  end
  local at = redis.pcall('HGET', KEYS[i], 'cancelled')
  cancelled[i - 1] = type(at) == 'string' and 1 or 0
end
return cancelled
