-- iteration.lua: shows how far running jobs are, and asks whether they are cancelled.
--
-- KEYS  1 in-flight hash of this process   2… `it-<jid>` of each job
-- ARGV  1 seconds for which the hashes are kept   then for each job: token, jid, number of the attempt, what is shown (JSON
--         text; empty when nothing is new), seconds since it began
--
-- Returns a list: 1 for each job that somebody has cancelled, else 0.
--
-- Invariant: a worker that lost a job writes nothing about it, or it would bring back what settling has removed. The entry
-- under the token has to name the jid: comparing the whole text would send it to Redis for as long as the job runs.

local cancelled = {}
for i = 2, #KEYS do
  local first = 2 + (i - 2) * 5
  local token, jid, shown = ARGV[first], ARGV[first + 1], ARGV[first + 3]
  if shown ~= '' then
    local entry = redis.call('HGET', KEYS[1], token) or redis.call('HGET', KEYS[1], token .. ':idle')
    if entry and string.find(entry, jid, 1, true) then
      -- A key of another type costs no job anything.
      local written = redis.pcall('HSET', KEYS[i], 'ex', ARGV[first + 2], 'c', shown, 'rt', ARGV[first + 4])
      if type(written) == 'number' then redis.pcall('EXPIRE', KEYS[i], ARGV[1]) end
    end
  end
  local at = redis.pcall('HGET', KEYS[i], 'cancelled')
  cancelled[i - 1] = type(at) == 'string' and 1 or 0
end
return cancelled
