-- forget.lua: drops counts that do not count any more, so that what counts jobs does not grow for ever.
--
-- KEYS  1… hashes of a job's digest to "number time", as turn.lua and recover.lua write them; each has a TTL, but one that
--       is written often never gets so old
-- ARGV  1 seconds for which they count   2 how many fields a hash may have before it is looked through
--
-- Returns the number of fields dropped.

local now = tonumber(redis.call('TIME')[1])
local n = 0
for _, key in ipairs(KEYS) do
  if redis.call('TYPE', key).ok == 'hash' and redis.call('HLEN', key) > tonumber(ARGV[2]) then
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
      local at = string.match(all[i + 1], '^%d+ %d+ (%d+)') or string.match(all[i + 1], '^%d+ (%d+)$') or '0'
      if now - tonumber(at) >= tonumber(ARGV[1]) then n = n + redis.call('HDEL', key, all[i]) end
    end
  end
end
return n
