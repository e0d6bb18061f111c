-- iteration.lua: writes the progress of running jobs, and reads whether they are cancelled.
--
-- KEYS  1 in-flight hash of this process   2… `it-<jid>` of each job
-- ARGV  1 seconds for which the hashes are kept   then for each job: token, jid, number of the attempt, progress (JSON text;
--         empty when Redis has it), seconds since it began
--
-- Returns a list: 1 for each job that is cancelled, else 0.
--
-- Invariant: a worker that lost a job writes nothing about it, or it would bring back what settling has removed. Progress is
-- written often, so the entry under the token only has to contain the jid, and the worker does not send the whole text.

local cancelled = {}
for i = 2, #KEYS do
  local first = 2 + (i - 2) * 5
  local token, jid, shown = ARGV[first], ARGV[first + 1], ARGV[first + 3]
  if shown ~= '' then
    local entry = redis.call('HGET', KEYS[1], token) or redis.call('HGET', KEYS[1], token .. ':idle')
    if entry and string.find(entry, jid, 1, true) then
      -- A key of another type must not fail a job. The first EXPIRE tests the right to limit its life: settling a job may fail to
      -- remove the hash, and nothing else removes it then.
      local may_expire = type(redis.pcall('EXPIRE', KEYS[i], ARGV[1])) == 'number'
      local written = may_expire and redis.pcall('HSET', KEYS[i], 'ex', ARGV[first + 2], 'c', shown, 'rt', ARGV[first + 4])
      if type(written) == 'number' then redis.pcall('EXPIRE', KEYS[i], ARGV[1]) end
    end
  end
  local at = redis.pcall('HGET', KEYS[i], 'cancelled')
  cancelled[i - 1] = type(at) == 'string' and 1 or 0
end
return cancelled
