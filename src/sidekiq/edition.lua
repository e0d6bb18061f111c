-- edition.lua: which job is the newest of those that build the same. The text of newest.lua and usher.lua follows this one.
--
-- `sidebake:newest:<key>` is a string of five lines: when Rails created the job, in microseconds; its jid; whether it ends an older
-- job that runs (1 or 0); what tells its inputs from others, or nothing; its build id as JSON, or nothing.

-- Returns the record when it is of a newer job, else nil; and whether that job has other inputs, so that it ends this one. Two jobs of
-- one microsecond are in the order of their jids.
local function newer_than(key, created, jid, twin)
  local record = redis.call('GET', key)
  local known, known_jid, known_twin = string.match(record or '', '^(%d+)\n([^\n]*)\n%d\n([^\n]*)\n')
  if not known then return nil, false end
  known, created = tonumber(known), tonumber(created)
  local is_newer = known > created or known == created and known_jid > jid
  return is_newer and record or nil, is_newer and (known_twin == '' or known_twin ~= twin)
end
