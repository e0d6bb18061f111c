-- page.lua: reads members of a sorted set, as many as fit into one reply.
--
-- KEYS  1 the set
-- ARGV  1 `rank` or `scan`   2 the rank, or the cursor, to begin at   3 how many members to read
--       4 how many of those were returned before   5 most bytes of members to return, but at least one member
--       6 a score
--
-- Returns {cursor, whether these are the last of the page (0/1), how many members of the set have at most that score, a list of
-- members each followed by its score}. By `rank` the cursor is 0. By `scan` it is ZSCAN's cursor of the next page.
--
-- Writes nothing. A set that changes between two replies of one page may hide a member until the next round.

local cursor, all = '0', nil
if ARGV[1] == 'rank' then
  all = redis.call('ZRANGE', KEYS[1], ARGV[2], string.format('%d', ARGV[2] + ARGV[3] - 1), 'WITHSCORES')
else
  local page = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
  cursor, all = page[1], page[2]
end

local n_due = redis.call('ZCOUNT', KEYS[1], '-inf', ARGV[6])
local members, n_bytes, first = {}, 0, 2 * ARGV[4] + 1
for i = first, #all, 2 do
  n_bytes = n_bytes + #all[i]
  if i > first and n_bytes > tonumber(ARGV[5]) then return { cursor, 0, n_due, members } end
  members[#members + 1] = all[i]
  members[#members + 1] = all[i + 1]
end
return { cursor, 1, n_due, members }
