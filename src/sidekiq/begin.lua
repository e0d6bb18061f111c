-- begin.lua: records that jobs begin which were recovered from dead workers before.
--
-- KEYS  1 in-flight hash of this process
-- ARGV  pairs: token, text of the job as it was fetched
--
-- Returns a list: 1 for each job that may begin, 0 for one that this process does not own any more, by token and text.
--
-- Invariant: recovery counts a crash against jobs that are recorded as begun, so a job with a history is recorded before it
-- runs. The entry moves from `<token>:idle` to `<token>`. The write comes before the removal, and the first HDEL tests the right
-- to remove; so the script may be sent any number of times.

redis.call('HDEL', KEYS[1], '')
local may_begin = {}
for i = 1, #ARGV, 2 do
  local token, idle = ARGV[i], ARGV[i] .. ':idle'
  local begun = redis.call('HGET', KEYS[1], token)
  local entry = begun or redis.call('HGET', KEYS[1], idle)
  local is_owned = entry and string.sub(entry, string.find(entry, '\n', 1, true) + 1) == ARGV[i + 1]
  if is_owned and not begun then
    redis.call('HSET', KEYS[1], token, entry)
    redis.call('HDEL', KEYS[1], idle)
  end
  may_begin[(i + 1) / 2] = is_owned and 1 or 0
end
return may_begin
