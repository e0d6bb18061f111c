-- page.lua: reads members of a sorted set, as many as fit into one reply.
--
-- KEYS  1 the set
-- ARGV  1 `rank` or `scan`   2 the rank, or the cursor, to begin at   3 how many members to read
--       4 how many of those were read before   5 most bytes of members to return, but at least one member
--       6 a score: by `rank`, reading ends at the first member with a higher one   7 another score
--       8… texts: a member that has none of them is read and not returned. Without texts all members are returned.
--
-- Returns {cursor, whether the page was read to its end (0/1), how many members of the set have at most the first score, and at
-- most the second one, how many members were read, bytes of the whole page, a list of members each followed by its score}. By
-- `rank` the cursor is 0, and a page of long members ends early. By `scan` it is ZSCAN's cursor of the next page.
--
-- Writes nothing. A set that changes between two replies of one page may hide a member until the next round.

local cursor, all, last, most = '0', {}, nil, tonumber(ARGV[5])
local n_all_bytes = 0
if ARGV[1] == 'rank' then
  last = tonumber(ARGV[6])
  -- A few at a time: each member may be megabytes.
  local some
  repeat
    local first = ARGV[2] + #all / 2
    some = redis.call('ZRANGE', KEYS[1], string.format('%d', first), string.format('%d', first + 9), 'WITHSCORES')
    for i = 1, #some, 2 do
      all[#all + 1], all[#all + 2] = some[i], some[i + 1]
      n_all_bytes = n_all_bytes + #some[i]
    end
  until #some < 20 or #all >= 2 * ARGV[3] or n_all_bytes > most
else
  local page = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
  cursor, all = page[1], page[2]
  for i = 1, #all, 2 do n_all_bytes = n_all_bytes + #all[i] end
end

-- JSON can spell a letter of a name as an escape.
local function is_wanted(member)
  if #ARGV == 7 or string.find(member, '\\u00', 1, true) then return true end
  for i = 8, #ARGV do
    if string.find(member, ARGV[i], 1, true) then return true end
  end
  return false
end

local n_due, n_old = redis.call('ZCOUNT', KEYS[1], '-inf', ARGV[6]), redis.call('ZCOUNT', KEYS[1], '-inf', ARGV[7])
local members, n_bytes, n_read = {}, 0, 0
for i = 2 * ARGV[4] + 1, #all, 2 do
  local member, score = all[i], all[i + 1]
  if last and tonumber(score) > last then break end
  if is_wanted(member) then
    n_bytes = n_bytes + #member
    if #members > 0 and n_bytes > most then return { cursor, 0, n_due, n_old, n_read, n_all_bytes, members } end
    members[#members + 1] = member
    members[#members + 1] = score
  end
  n_read = n_read + 1
end
return { cursor, 1, n_due, n_old, n_read, n_all_bytes, members }
