-- edition.lua: which job is the newest of those that build the same. The text of newest.lua and usher.lua follows this one.
--
-- `sidebake:newest:<key>` is a string of four lines: when Rails created the job, in microseconds; its jid; whether it ends an older
-- job that runs (1 or 0); its build id as JSON, or nothing.

-- Returns the record when it is of a newer job, else nil. Two jobs of one microsecond are in the order of their jids.
local function newer_than(key, created, jid)
  local record = redis.call('GET', key)
  local known, known_jid = string.match(record or '', '^(%d+)\n([^\n]*)\n')
  if not known then return nil end
  known, created = tonumber(known), tonumber(created)
  return (known > created or known == created and known_jid > jid) and record or nil
end
