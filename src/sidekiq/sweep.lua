-- sweep.lua: computes the counters of running jobs again, and forgets tenants that are away.
--
-- KEYS  1 `sidebake:running`   2 `sidebake:shares`   3 `sidebake:owners`
--       Not declared: claims and in-flight hash of each owner. An owner that began a moment ago counts too.
--
-- Returns the number of claims that were dropped: of jobs that are in flight no more. There are some only when Redis lost data, or when
-- somebody removed keys.
--
-- Redis never refuses HDEL at its memory limit. After it, the script may write as well.
redis.call('HDEL', KEYS[1], '')
local counts, tenants, n_dropped = {}, {}, 0
for _, owner in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local claims_key, inflight = 'sidebake:claims:' .. owner, 'sidebake:inflight:' .. owner
  local claims = redis.call('HGETALL', claims_key)
  for j = 1, #claims, 2 do
    local token, n_line = claims[j], 0
    if redis.call('HEXISTS', inflight, token) + redis.call('HEXISTS', inflight, token .. ':idle') > 0 then
      for line in string.gmatch(claims[j + 1], '[^\n]+') do
        n_line = n_line + 1
        if n_line == 1 then tenants[line] = true end
        if n_line > 2 then counts[line] = (counts[line] or 0) + 1 end
      end
    else
      redis.call('HDEL', claims_key, token)
      n_dropped = n_dropped + 1
    end
  end
end

local counted = redis.call('HGETALL', KEYS[1])
for i = 1, #counted, 2 do
  local n = counts[counted[i]]
  if not n then
    redis.call('HDEL', KEYS[1], counted[i])
  elseif n ~= tonumber(counted[i + 1]) then
    redis.call('HSET', KEYS[1], counted[i], n)
  end
  counts[counted[i]] = nil
end
for counter, n in pairs(counts) do redis.call('HSET', KEYS[1], counter, n) end

-- A tenant that is away begins at the clock when it comes back, so an earlier time is the same as none. Of very many tenants, those
-- that are away lose what they owe.
redis.call('EXPIRE', KEYS[2], 86400)
local clock = tonumber(redis.call('HGET', KEYS[2], ' clock'))
local has_many = redis.call('HLEN', KEYS[2]) > 10000
local shares = clock and redis.call('HGETALL', KEYS[2]) or {}
for i = 1, #shares, 2 do
  local is_away = shares[i] ~= ' clock' and not tenants[shares[i]] and (has_many or tonumber(shares[i + 1]) <= clock)
  if is_away then redis.call('HDEL', KEYS[2], shares[i]) end
end
return n_dropped
