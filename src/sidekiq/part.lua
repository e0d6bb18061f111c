-- part.lua: reads a part of a queue, for the one process of the fleet that reads it for a purpose.
--
-- KEYS  1 the list   2 the lock: `sidebake:scout:<queue>`, `sidebake:queued:<queue>`, `sidebake:load:<digest>:<queue>` or `sidebake:watch:<queue>:<settings>`
-- ARGV  1 identity of this process   2 life of the lock, ms   3 how many texts at the head to pass over   4 most texts to read
--       5 most bytes of them   6 the longest text to return
--
-- Returns {length of the list, how many texts were read, the texts, the next one first}; false when another process has the lock.
--
-- Writes nothing but the lock. It saves work and protects nothing: what is found is compared with the list when it is taken.

local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return false end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local skipped, most, most_bytes, n_read, n_bytes, longest, texts = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), 0, 0, 1, {}
while n_read < most and n_bytes < most_bytes do
  -- More at a time, as long as they are short: Lua has a whole page in memory.
  local n_asked = math.min(most - n_read, 200, n_read + 1, math.max(1, math.floor(most_bytes / longest)))
  local last = -skipped - n_read - 1
  local page = redis.call('LRANGE', KEYS[1], string.format('%d', last - n_asked + 1), string.format('%d', last))
  for i = #page, 1, -1 do
    n_bytes, longest = n_bytes + #page[i], math.max(longest, #page[i])
    if #page[i] <= tonumber(ARGV[6]) then texts[#texts + 1] = page[i] end
  end
  n_read = n_read + #page
  if #page < n_asked then break end
end
return { redis.call('LLEN', KEYS[1]), n_read, texts }
