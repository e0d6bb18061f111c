-- forget.lua: drops counts that are too old, so that these hashes do not grow forever.
--
-- KEYS  1… hashes of a job's digest to its counts and their time, as turn.lua and recover.lua write them. Each hash has a TTL,
--       but one that is written often never expires.
-- ARGV  1 seconds for which counts are valid   2 how many fields a hash may have before it is searched
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
