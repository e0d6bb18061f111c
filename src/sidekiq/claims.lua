-- claims.lua: what running jobs count for. The text of turn.lua and recover.lua follows this one.
--
-- `sidebake:claims:<identity>` is a hash: token → lines. The first line is the tenant; the second is its weight, the seconds that it
-- was charged, and the time at which the job began; each further line is a counter, such as "tenant acme".
-- `sidebake:running` is a hash: counter → running jobs of the whole fleet. sweep.lua computes it again from the claims.
-- `sidebake:shares` is a hash: tenant → its virtual time, in seconds of slots per weight. The field " clock" has that of the job that
-- began last. A tenant that was away begins there (start-time fair queueing).
--
-- The keys are not declared, and shared ones are written without a read wherever a worker may be idle: Redis would wake it at each
-- change of another worker. A refusal costs fairness and never a job.
--
-- Invariant: a claim is written in the same step as the entry in flight, or later, and removed with it. So a limit counts every job
-- that a worker has taken under it, until the job has ended or was requeued.

-- A shorter job costs as much: of very short jobs, the number counts. As in contention.rs.
local shortest_s = 1

local running_key, shares_key, clock_field = 'sidebake:running', 'sidebake:shares', ' clock'

-- By Redis' clock, in seconds, once per script.
local precise_s = nil
local function precise_time()
  local time = not precise_s and redis.call('TIME')
  precise_s = precise_s or tonumber(time[1]) + tonumber(time[2]) / 1e6
  return precise_s
end

local function lines_of(text)
  local lines = {}
  for line in string.gmatch(text, '[^\n]+') do lines[#lines + 1] = line end
  return lines
end

-- Adds to a virtual time. Returns it; nil when Redis refuses.
local function add_time(tenant, seconds)
  local value = redis.pcall('HINCRBYFLOAT', shares_key, tenant, string.format('%.6f', seconds))
  return type(value) == 'string' and tonumber(value) or nil
end

-- Charges a job that begins now to its tenant.
local function charge(tenant, weight, seconds)
  local clock, time = add_time(clock_field, 0), add_time(tenant, 0)
  if not clock or not time then return end
  local start = math.max(clock, time)
  if start > clock then add_time(clock_field, start - clock) end
  add_time(tenant, start - time + seconds / weight)
end

local function claim_text(tenant, weight, seconds, counters)
  local lines = { tenant, string.format('%s %s %.6f', weight, seconds, precise_time()), unpack(counters) }
  return table.concat(lines, '\n')
end

-- Writes the claim of a job that has begun without one.
local function claim(claims, token, tenant, weight, seconds, counters)
  local written = redis.pcall('HSETNX', claims, token, claim_text(tenant, weight, seconds, counters))
  if written ~= 1 then return end
  for _, counter in ipairs(counters) do redis.pcall('HINCRBY', running_key, counter, '1') end
  charge(tenant, tonumber(weight), tonumber(seconds))
end

-- Calls a command with any number of arguments after the key. The stack of Lua has no room for all of them at once.
local function call_in_parts(command, key, arguments)
  for first = 1, #arguments, 1000 do
    redis.pcall(command, key, unpack(arguments, first, math.min(first + 999, #arguments)))
  end
end

-- Subtracts from counters of running jobs, and removes counters that reach zero.
local function lower(counts)
  local over = {}
  for counter, n in pairs(counts) do
    local left = redis.pcall('HINCRBY', running_key, counter, string.format('%d', -n))
    if type(left) == 'number' and left <= 0 then over[#over + 1] = counter end
  end
  call_in_parts('HDEL', running_key, over)
end

-- Removes the claims of jobs that are in flight no more. `is_used` tells whether the time of their slots counts.
local function release(claims, tokens, is_used)
  local n_claims = #tokens > 0 and redis.pcall('HLEN', claims)
  if type(n_claims) ~= 'number' or n_claims == 0 then return end
  local texts = redis.pcall('HMGET', claims, unpack(tokens))
  if texts.err then return end
  local times, counts, claimed = {}, {}, {}
  for i, text in ipairs(texts) do
    local lines = text and lines_of(text) or {}
    local weight, charged, since = string.match(lines[2] or '', '^(%S+) (%S+) (%S+)$')
    if weight then
      local used = is_used and math.max(shortest_s, precise_time() - tonumber(since)) or 0
      times[lines[1]] = (times[lines[1]] or 0) + (used - tonumber(charged)) / tonumber(weight)
      for j = 3, #lines do counts[lines[j]] = (counts[lines[j]] or 0) + 1 end
    end
    if text then claimed[#claimed + 1] = tokens[i] end
  end
  -- A short job was charged what it took.
  for tenant, seconds in pairs(times) do
    if seconds ~= 0 then add_time(tenant, seconds) end
  end
  lower(counts)
  call_in_parts('HDEL', claims, claimed)
end

