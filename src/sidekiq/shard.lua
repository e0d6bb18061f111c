-- shard.lua: chooses the shard of a build, and counts the build there.
--
-- KEYS  1 `sidebake:shards:<builder>`   2 `sidebake:home:<builder>:<application>`   3 in-flight hash of this process
--       Not declared: in-flight hash of each process that has a build on the builder.
-- ARGV  1 identity   2 token of the job   3 builds that a shard may run in any case   4 the same in percent of the mean
--       5 the number of shards that take the build   then these, and after them the other shards of the builder
--
-- `sidebake:shards:<builder>` is a hash: token and identity, with a space between -> shard. Two workers can have the same token.
-- A build counts while its job is in flight: until the job is settled, or recovered from a worker that died.
-- `sidebake:home:<builder>:<application>` is a string: the shards that have the application's cache, with spaces between.
-- The first one is its home. While most shards take no builds, an application gets no home: the first shard that comes back
-- would be that of all that wait.
--
-- Returns the place of the shard that the build got, that of its home (-1 if it had none), the builds that the home runs, and
-- how many each may run. Places count the shards of ARGV from 0. Returns nothing when this process no longer owns the job.
--
-- placement.rs of the builders chooses the same way.

local max_known, first, home_ttl_s = 5, 6, 30 * 86400

if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 0 then return {} end
-- Redis never refuses HDEL at its memory limit. After it, the script may write as well.
local own = ARGV[2] .. ' ' .. ARGV[1]
redis.call('HDEL', KEYS[1], own)
local counts, ended = {}, {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local token, owner = string.match(entries[i], '^(%S+) (.+)$')
  if token and redis.call('HEXISTS', 'sidebake:inflight:' .. owner, token) == 1 then
    counts[entries[i + 1]] = (counts[entries[i + 1]] or 0) + 1
  else
    ended[#ended + 1] = entries[i]
  end
end
for i = 1, #ended, 1000 do redis.call('HDEL', KEYS[1], unpack(ended, i, math.min(i + 999, #ended))) end

local n_able, places, n_running = tonumber(ARGV[5]), {}, 0
for i = first, #ARGV do places[ARGV[i]] = i - first end
for i = first, first + n_able - 1 do n_running = n_running + (counts[ARGV[i]] or 0) end
local most = math.max(tonumber(ARGV[3]), math.ceil((n_running + 1) * tonumber(ARGV[4]) / (100 * n_able)))

-- A shard that the builder has no longer has no cache either.
local known = {}
for shard in string.gmatch(redis.call('GET', KEYS[2]) or '', '%S+') do
  if places[shard] and #known < max_known then known[#known + 1] = shard end
end
local home, chosen = known[1], nil
for _, shard in ipairs(known) do
  if not chosen and places[shard] < n_able and (counts[shard] or 0) < most then chosen = shard end
end
if not chosen then
  chosen = ARGV[first]
  for i = first + 1, first + n_able - 1 do
    if (counts[ARGV[i]] or 0) < (counts[chosen] or 0) then chosen = ARGV[i] end
  end
  local is_known = false
  for _, shard in ipairs(known) do is_known = is_known or shard == chosen end
  local may_be_home = home or 2 * n_able > #ARGV - first + 1
  if not is_known and may_be_home then known[math.min(#known + 1, max_known)] = chosen end
end
redis.call('HSET', KEYS[1], own, chosen)
redis.call('EXPIRE', KEYS[1], 86400)
if #known > 0 then redis.call('SET', KEYS[2], table.concat(known, ' '), 'EX', home_ttl_s) end
return { places[chosen], home and places[home] or -1, counts[home or chosen] or 0, most }
