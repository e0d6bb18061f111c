-- turn.lua: settles what has finished and fetches for the free slots, in one step.
--
-- KEYS  1 in-flight hash of this process   2 its lease   3 `queues`   4 `retry`   5 `dead`
--       6 `sidebake:recoveries`   7 `sidebake:interruptions`   8 `sidebake:owners`   9 `paused`   10 `sidebake:apart`
--       11… the lists to fetch from
--       Not declared: `it-<jid>`, `stat:*`, the lists to push to, other leases. Redis 6.2 and 7.0 track every declared key of a
--       script that reads. An ACL checks these keys nevertheless. A settlement succeeds without the right to the first two.
-- ARGV  1 now, float seconds   2 oldest score kept in `dead`   3 entries kept in `dead`   4 the UTC day, for `stat:*`
--       5 incarnation of the lease that the sender knows   6 number of this turn   7 recoveries that make no suspect yet
--       8 crashes alone that make no poison yet   9 most bytes of texts to fetch   10 most bytes of one text; 9 is at least as
--         large when the worker holds no job
--      11 number of settlements, then each: token, text as it was fetched, processed (0/1), failed (0/1), number of effects,
--         then each effect: kind, list or score, text. At most one push, head or interrupted.
--           push   LPUSH the text on the list
--           head   RPUSH the fetched text on the list; the effect's own text is not used
--           interrupted   the same, and count an interruption
--           retry  ZADD the text with the score
--           dead   ZADD the text to `dead` with the score, and trim `dead`
--           unlink UNLINK the key that the text names
--           share  keep the text for jobs with the same inputs, under this key (twins.rs)
--         then the number of fetch requests, then each: number of slots, and the indices of its lists in KEYS, in order, with
--         spaces between
--         then what is shared between tenants (claims.lua): when a list is contended (0: never, 1: when it has more jobs than there are
--         free slots for it, 2: when it has jobs); the most texts of a window; the most bytes of one; the number of tenants that the
--         worker asks for, then these; the number of counters that it asks for, then these; the number of claims of jobs that began
--         without one, then each: token, claim; the number of lists that are decided, then each: index in KEYS, whether its window is
--         wanted (0/1), number of candidates, then each candidate: text, claim. A claim: tenant, weight, seconds to charge, number of counters, then each: name, limit or
--         an empty text
--         then the tokens of the free slots, fetch request by fetch request
--
-- Returns {settlements, slots, passed over, idlers, oversized, windows, known}.
--   settlements: for each, 1: done; 0: this process does not own token and text any more, nothing was done; or the refused key and
--     Redis' error, nothing was done.
--   slots: for each, false or {queue, text, times recovered, times it crashed its worker alone, times interrupted, idle (0/1)}.
--     Instead of a list, "no lease" when the lease is gone or another one: a process that others may count as dead must not
--     fetch. Or "full" when Redis is at its memory limit: results are settled, nothing is fetched.
--   passed over: a queue that cannot be fetched from, with the reason; or false.
--   idlers: how many processes may wait for the same push; 0 when this one got all that it asked for.
--   oversized: queue and bytes of each text that is too long for a worker. It is in `dead` now.
--   windows: {list, length, texts, far} of each list that is contended and not decided, or whose window is wanted: its next texts, the
--     next one first, and those further behind that `sidebake:ahead:<queue>` has. Nothing was taken from a list that is not decided.
--   known: with windows, the virtual time of the clock, of the tenants and the counters that were asked for; otherwise false.
--
-- From a decided list the script takes candidates that are still there and whose counters are below their limits, each time one of the
-- tenant with the least virtual time. Candidates of one tenant keep their order.
--
-- Invariant: a job is in exactly one place. The write that replaces an entry comes before its removal, and the right to remove is
-- tested before that write; so no refusal loses or doubles a job.
-- A slot that was filled before is returned again, so the script may be sent any number of times. The lease holds its
-- incarnation and the number of the last turn. A turn that was sent under an earlier incarnation, or that arrives after a later
-- turn, fetches nothing; otherwise it could fill a used token.
--
-- `:idle` (inflight.rs) follows the token of a job that does not run: its result was refused, or it was recovered before and has
-- not begun (begin.lua). Recovery counts a crash against the others only. A suspect ends the fetch: it runs apart from others.
-- `sidebake:apart` has the processes that hold a suspect: at most a quarter of the fleet, and at least one. Other processes look
-- past a suspect and leave it in its queue.

local inflight, now = KEYS[1], tonumber(ARGV[1])
-- As in keys.rs. The script itself builds the names of other leases, since only `sidebake:apart` knows their processes.
local lease_prefix = 'sidebake:lease:'
local identity = string.sub(KEYS[2], #lease_prefix + 1)
local next_argument = 11

local function argument()
  local value = ARGV[next_argument]
  next_argument = next_argument + 1
  return value
end

local function idle(token)
  return token .. ':idle'
end

local function queue_name(key)
  return string.sub(key, 7)
end

local function text_of(entry)
  return string.sub(entry, string.find(entry, '\n', 1, true) + 1)
end

-- Redis formats each number that a script passes to a command as a float, which takes ten times as long.
local function digits(n)
  return string.format('%d', n)
end

-- The error of a refused command, or nil.
local function refusal_of(reply)
  return type(reply) == 'table' and reply.err or nil
end

-- How long recoveries and interruptions of a text count: three days, Sidekiq Pro's limit for poison pills.
local counted_s = 259200

-- By Redis' clock, as in recover.lua: a worker's clock may be wrong by days.
local server_s = nil
local function server_time()
  server_s = server_s or tonumber(redis.call('TIME')[1])
  return server_s
end

-- Returns how often a job was recovered or interrupted, and how often of that it ran alone. recover.lua has the format of
-- recoveries. Interruptions, and recoveries of earlier versions, have no second number.
local function history(key, digest)
  local value = redis.pcall('HGET', key, digest)
  if type(value) ~= 'string' then return 0, 0 end
  local n, alone, at = string.match(value, '^(%d+) (%d+) (%d+)')
  if not n then n, at = string.match(value, '^(%d+) (%d+)$') end
  if not n or server_time() - tonumber(at) >= counted_s then return 0, 0 end
  return tonumber(n), tonumber(alone) or 0
end

local function read_claim()
  local read = { tenant = argument(), weight = argument(), seconds = argument(), counters = {}, limits = {} }
  for i = 1, tonumber(argument()) do
    read.counters[i], read.limits[i] = argument(), tonumber(argument())
  end
  return read
end

-- Keeps a result for jobs with the same inputs. A failure here does not fail the settlement: one of them is built then.
local function share(key, result)
  local written = redis.pcall('HSET', key, 'ended_us', string.format('%.0f', precise_time() * 1e6), 'result', result)
  if type(written) == 'number' then redis.pcall('EXPIRE', key, '600') end
end

local function read_settlement()
  local settlement = { token = argument(), text = argument(), processed = argument(), failed = argument(), effects = {} }
  for i = 1, tonumber(argument()) do
    settlement.effects[i] = { kind = argument(), place = argument(), text = argument() }
  end
  return settlement
end

local sorted_sets = { retry = KEYS[4], dead = KEYS[5] }
local named = {}

-- Pushes the text; returns the key and the error when Redis refuses. Then at most the name in `queues` was written.
local function push(effect, fetched_text)
  local list, refusal = effect.place, nil
  if not named[list] then refusal = refusal_of(redis.pcall('SADD', KEYS[3], queue_name(list))) end
  if refusal then return KEYS[3] .. ': ' .. refusal end
  named[list] = true
  if effect.kind == 'push' then
    refusal = refusal_of(redis.pcall('LPUSH', list, effect.text))
  else
    refusal = refusal_of(redis.pcall('RPUSH', list, fetched_text))
  end
  return refusal and list .. ': ' .. refusal
end

-- A job that was pushed twice has the same text twice. White space after the JSON, different for each number, makes two members.
local function add(set, score, text)
  local member, n = text, nil
  while redis.call('ZADD', set, 'NX', score, member) == 0 do
    n = (n or tonumber(redis.pcall('ZCARD', set)) or 0) + 1
    member = text
    for bit = 0, math.floor(math.log(n) / math.log(2)) do
      member = member .. (math.floor(n / 2 ^ bit) % 2 == 1 and '\t' or ' ')
    end
  end
end

-- Counts an interruption. A failure here does not fail the settlement.
local function count_interruption(text)
  local digest = redis.sha1hex(text)
  local n = history(KEYS[7], digest) + 1
  redis.pcall('HSET', KEYS[7], digest, string.format('%d %d', n, server_time()))
  redis.pcall('EXPIRE', KEYS[7], counted_s)
end

local function trim_dead()
  redis.pcall('ZREMRANGEBYSCORE', KEYS[5], '-inf', ARGV[2])
  redis.pcall('ZREMRANGEBYRANK', KEYS[5], 0, -(tonumber(ARGV[3])))
end

-- Checks whether all effects can happen, and does the push, which only a push can test. Returns why they cannot happen; then none
-- has happened.
local function refused(effects, fetched_text)
  for _, effect in ipairs(effects) do
    local set = sorted_sets[effect.kind]
    -- Changes nothing, whatever members the set has.
    local refusal = set and refusal_of(redis.pcall('ZADD', set, 'XX', 'GT', '-inf', ''))
    if refusal then return set .. ': ' .. refusal end
  end
  for _, effect in ipairs(effects) do
    local is_push = not sorted_sets[effect.kind] and effect.kind ~= 'unlink' and effect.kind ~= 'share'
    local refusal = is_push and push(effect, fetched_text)
    if refusal then return refusal end
  end
  return nil
end

local ended, used, unused = {}, {}, {}
local claims = 'sidebake:claims:' .. identity

local function settle(settlement, field, entry)
  if not entry or text_of(entry) ~= settlement.text then return 0 end
  local refusal = refused(settlement.effects, settlement.text)
  if refusal then
    -- The job has ended, so no later crash counts against it.
    local is_renamed = field == settlement.token and not refusal_of(redis.pcall('HSET', inflight, idle(field), entry))
    if is_renamed then redis.call('HDEL', inflight, field) end
    return refusal
  end
  for _, effect in ipairs(settlement.effects) do
    if sorted_sets[effect.kind] then add(sorted_sets[effect.kind], effect.place, effect.text) end
  end
  redis.call('HDEL', inflight, field)
  local released = used
  for _, effect in ipairs(settlement.effects) do
    if effect.kind == 'head' or effect.kind == 'interrupted' then released = unused end
    if effect.kind == 'dead' then trim_dead() end
    if effect.kind == 'interrupted' then count_interruption(settlement.text) end
    if effect.kind == 'unlink' then ended[#ended + 1] = effect.text end
    if effect.kind == 'share' then share(effect.place, effect.text) end
  end
  released[#released + 1] = settlement.token
  return 1
end

-- Once per turn. A key of another type, or one that the ACL forbids, must not fail a settlement.
local function count(kind, n)
  if n == 0 then return end
  local total, today = 'stat:' .. kind, 'stat:' .. kind .. ':' .. ARGV[4]
  redis.pcall('INCRBY', total, digits(n))
  -- The first count of the day, or one that only this worker has made.
  if redis.pcall('INCRBY', today, digits(n)) == n then redis.pcall('EXPIRE', today, '157680000') end
end

local function settle_all(settlements)
  local results, tokens, entries, n_processed, n_failed = {}, {}, {}, 0, 0
  if #settlements == 0 then return results end
  for i, settlement in ipairs(settlements) do tokens[i] = settlement.token end
  -- Removes nothing, but tests the right to remove entries. After it, Redis refuses no write at its memory limit.
  redis.call('HDEL', inflight, '')
  for i, entry in ipairs(redis.call('HMGET', inflight, unpack(tokens))) do entries[tokens[i]] = entry end
  for i, settlement in ipairs(settlements) do
    local field = entries[settlement.token] and settlement.token or idle(settlement.token)
    local entry = entries[settlement.token] or redis.call('HGET', inflight, field)
    results[i] = settle(settlement, field, entry)
    if results[i] == 1 then
      entries[settlement.token] = nil
      n_processed, n_failed = n_processed + tonumber(settlement.processed), n_failed + tonumber(settlement.failed)
    end
  end
  if #ended > 0 and refusal_of(redis.pcall('UNLINK', unpack(ended))) then
    for _, key in ipairs(ended) do redis.pcall('UNLINK', key) end
  end
  count('processed', n_processed)
  count('failed', n_failed)
  release(claims, used, true)
  release(claims, unused, false)
  return results
end

local passed_over, idlers, oversized = false, 0, {}

-- The names of the queues that Sidekiq Pro has paused. Reading the set also arms client-side tracking.
local function paused()
  local names, is_paused = redis.pcall('SMEMBERS', KEYS[9]), {}
  for _, name in ipairs(names.err and {} or names) do is_paused[name] = true end
  return is_paused
end

-- Whether any job has a history. Without one there is nothing to look up.
local has_past = false

local function slot(queue, text, is_idle)
  if not has_past then return { queue, text, 0, 0, 0, is_idle } end
  local digest = redis.sha1hex(text)
  local recovered, alone = history(KEYS[6], digest)
  return { queue, text, recovered, alone, history(KEYS[7], digest), is_idle }
end

local function slot_of(entry, is_idle)
  return entry and slot(string.sub(entry, 1, string.find(entry, '\n', 1, true) - 1), text_of(entry), is_idle)
end

-- The slots that the same turn has filled before, or another turn whose reply was lost.
local function filled(tokens)
  local slots, fields, n = {}, {}, #tokens
  if redis.call('HLEN', inflight) == 0 then
    for i = 1, n do slots[i] = false end
    return slots
  end
  -- Reads idle fields even when no job has a history: the counts that made a job idle may have expired.
  for i, token in ipairs(tokens) do fields[i], fields[n + i] = token, idle(token) end
  local entries = redis.call('HMGET', inflight, unpack(fields))
  for i = 1, n do slots[i] = slot_of(entries[i], 0) or slot_of(entries[n + i], 1) end
  return slots
end

-- The next `n` texts of a list, the next one last, after `n_before` that are already assigned; none when this user may not remove
-- them.
local function peek(list, n, n_before)
  local texts = redis.pcall('LRANGE', list, digits(-n_before - n), digits(-n_before - 1))
  if #texts == 0 and not texts.err then return texts end
  -- Removes nothing.
  local refusal = texts.err or refusal_of(redis.pcall('RPOP', list, '0'))
  if not refusal then return texts end
  passed_over = list .. ': ' .. refusal
  return {}
end

-- Adds a text that is too long to the dead set, as an entry that every Sidekiq can show (sidekiq/shown.rs makes the others).
-- Returns whether it was added. Then the text has to be removed from its list.
local function add_oversized(list, text)
  local refusal = refusal_of(redis.pcall('ZADD', KEYS[5], 'XX', 'GT', '-inf', ''))
  if refusal then
    passed_over = KEYS[5] .. ': ' .. refusal
    return false
  end
  local queue, time = queue_name(list), string.format('%.3f', now)
  local class = '{"class":"Sidebake::Malformed"'
  if string.sub(text, 1, #class) ~= class then
    text = class .. ',"args":[' .. cjson.encode(text) .. '],"jid":"'
      .. string.sub(redis.sha1hex(string.sub(text, 1, 4096) .. #text .. time), 1, 24) .. '","queue":' .. cjson.encode(queue)
      .. ',"retry":0,"created_at":' .. time .. ',"enqueued_at":' .. time .. ',"failed_at":' .. time
      .. ',"retry_count":0,"error_class":"Sidebake::InvalidArguments","error_message":"the job is longer than '
      .. ARGV[10] .. ' bytes"}'
  end
  -- Sidekiq finds an entry by its score and its jid.
  add(KEYS[5], string.format('%.6f', now + #oversized * 1e-6), text)
  trim_dead()
  oversized[#oversized + 1] = queue .. ': ' .. #text .. ' bytes'
  return true
end

-- Whether this process may take a suspect. Then it fetches nothing more until the suspect has run alone.
local may_take_suspect = nil
local function takes_suspect()
  if may_take_suspect ~= nil then return may_take_suspect end
  local holders, n_holders = redis.pcall('SMEMBERS', KEYS[10]), 0
  for _, holder in ipairs(holders.err and {} or holders) do
    if holder ~= identity and redis.call('EXISTS', lease_prefix .. holder) == 1 then
      n_holders = n_holders + 1
    else
      redis.call('SREM', KEYS[10], holder)
    end
  end
  local n_owners = redis.pcall('SCARD', KEYS[8])
  may_take_suspect = n_holders < math.max(1, math.floor((tonumber(n_owners) or 0) / 4))
  return may_take_suspect
end

-- What is removed from each list: so many texts from its end, and texts in front of a suspect that stays.
local n_popped, n_seen, n_passed, behind = {}, {}, {}, {}

-- How many suspects of one list a fetch looks past.
local most_passed = 100

local function pass(list)
  n_seen[list], n_passed[list] = (n_seen[list] or 0) + 1, (n_passed[list] or 0) + 1
  return n_passed[list] < most_passed
end

-- Whether this user may remove the next text of a list. `peek` has tested RPOP.
local lrem_refusal = nil
local function may_remove(list)
  if not n_passed[list] then return true end
  if lrem_refusal == nil then lrem_refusal = refusal_of(redis.pcall('LREM', 'sidebake:none', '1', '')) or false end
  if lrem_refusal then passed_over = list .. ': ' .. lrem_refusal end
  return not lrem_refusal
end

-- Notes the next text of a list for removal at the end of the fetch.
local function remove(list, text)
  n_seen[list] = (n_seen[list] or 0) + 1
  if n_passed[list] then
    behind[#behind + 1] = { list, text }
  else
    n_popped[list] = (n_popped[list] or 0) + 1
  end
end

-- What is shared between tenants; read below.
local sharing = nil

-- How the candidates of decided lists stand: virtual time by tenant, running jobs by counter.
local times, counts, clock, has_counts = {}, {}, 0, true

-- Reads fields of a hash into `values`; returns the error when Redis refuses. The stack of Lua has no room for all of them at once.
local function read_numbers(key, fields, values)
  for first = 1, #fields, 1000 do
    local last = math.min(first + 999, #fields)
    local found = redis.pcall('HMGET', key, unpack(fields, first, last))
    if found.err then return found.err end
    for i = first, last do values[fields[i]] = tonumber(found[i - first + 1] or 0) end
  end
  return nil
end

local function read_standing()
  local tenants, counters = { clock_field }, {}
  for _, decision in pairs(sharing.decided) do
    for _, candidate in ipairs(decision.candidates) do
      local tenant = candidate.claim.tenant
      if not times[tenant] then
        times[tenant], tenants[#tenants + 1] = 0, tenant
      end
      for _, counter in ipairs(candidate.claim.counters) do
        if not counts[counter] then
          counts[counter], counters[#counters + 1] = 0, counter
        end
      end
    end
  end
  if #tenants == 1 then return end
  read_numbers(shares_key, tenants, times)
  local refused_counts = read_numbers(running_key, counters, counts)
  if refused_counts then has_counts, passed_over = false, running_key .. ': ' .. refused_counts end
  clock = times[clock_field] or 0
end

local function has_room(claimed)
  for i, counter in ipairs(claimed.counters) do
    if claimed.limits[i] and (not has_counts or counts[counter] >= claimed.limits[i]) then return false end
  end
  return true
end

-- The virtual time at which a candidate would begin. Taking a candidate changes it for the same tenant only.
local function start_of(candidate)
  return math.max(clock, times[candidate.claim.tenant])
end

-- Removes the next candidate, and returns it; nil when none may run.
local function next_candidate(candidates)
  while #candidates > 0 do
    -- The first one also when a number in Redis is none.
    local best, least = 1, math.huge
    for i, candidate in ipairs(candidates) do
      candidate.start = candidate.start or start_of(candidate)
      if candidate.start < least then best, least = i, candidate.start end
    end
    local candidate = table.remove(candidates, best)
    -- What the fetch takes uses up limits, so this one has no room later either.
    if has_room(candidate.claim) then return candidate end
  end
  return nil
end

-- Counts a candidate that was taken, as `charge` does in Redis.
local function count_taken(taken)
  local claimed = taken.claim
  clock = math.max(clock, times[claimed.tenant])
  times[claimed.tenant] = clock + tonumber(claimed.seconds) / tonumber(claimed.weight)
  for _, counter in ipairs(claimed.counters) do counts[counter] = counts[counter] + 1 end
  for _, decision in pairs(sharing.decided) do
    for _, candidate in ipairs(decision.candidates) do
      if candidate.claim.tenant == claimed.tenant then candidate.start = nil end
    end
  end
end

-- Writes the claims of the candidates that were taken, {token, claim} each, and what they have changed of what `read_standing` read.
local function write_claims(taken)
  if #taken == 0 then return end
  local texts, shares, running = {}, { clock_field, string.format('%.6f', clock) }, {}
  local is_noted = { [shares] = {}, [running] = {} }
  local function note(fields, field, value)
    if is_noted[fields][field] then return end
    is_noted[fields][field], fields[#fields + 1], fields[#fields + 2] = true, field, value
  end
  for _, one in ipairs(taken) do
    local token, claimed = one[1], one[2]
    texts[#texts + 1] = token
    texts[#texts + 1] = claim_text(claimed.tenant, claimed.weight, claimed.seconds, claimed.counters)
    note(shares, claimed.tenant, string.format('%.6f', times[claimed.tenant]))
    for _, counter in ipairs(claimed.counters) do note(running, counter, digits(counts[counter])) end
  end
  call_in_parts('HSET', claims, texts)
  call_in_parts('HSET', shares_key, shares)
  if has_counts then call_in_parts('HSET', running_key, running) end
end

-- How often each text of a decided list is noted for removal.
local n_noted = {}

-- How many texts of one list a fetch looks for in vain: near its end, and in all of it.
local most_missed, most_searched = 3, 6

-- The scout's copies of jobs of a list that are far behind, if there are any.
local copies = {}
local function copies_of(list)
  local key = 'sidebake:ahead:' .. queue_name(list)
  if copies[list] == nil then copies[list] = redis.pcall('EXISTS', key) == 1 and key end
  return copies[list]
end

local function has_copy(list, text)
  local key = copies_of(list)
  return key and type(redis.pcall('LPOS', key, text)) == 'number'
end

-- Removes the copy of a job that is not in its list, or will not be.
local function forget_copy(list, text)
  local key = copies_of(list)
  if key then redis.pcall('LREM', key, '0', text) end
end

-- Whether a list has a text that is not noted yet, and whether it is one with a copy. One without a copy was near the end of the list, and
-- only jobs that return to the list can have moved it. So Redis does not search the whole list for one that is gone.
local function is_there(list, text)
  local rank = digits(-1 - (n_noted[list .. text] or 0))
  local place, is_copied = redis.pcall('LPOS', list, text, 'RANK', rank, 'MAXLEN', digits(2 * sharing.n_texts + 1000)), false
  if not place and has_copy(list, text) then
    place, is_copied = redis.pcall('LPOS', list, text, 'RANK', rank), true
  end
  if refusal_of(place) then passed_over = list .. ': ' .. place.err end
  if not place then forget_copy(list, text) end
  return type(place) == 'number', is_copied
end

-- Drops the other copied candidates of a tenant, once two of its copies named jobs that are gone.
local n_gone = {}
local function leave_out(list, candidates, tenant)
  n_gone[tenant] = (n_gone[tenant] or 0) + 1
  if n_gone[tenant] < 2 then return end
  for i = #candidates, 1, -1 do
    if candidates[i].claim.tenant == tenant and has_copy(list, candidates[i].text) then table.remove(candidates, i) end
  end
end

-- Whether a list has more jobs than this worker may take without a choice.
local function is_contended(list, n_free)
  local n = sharing.look > 0 and redis.pcall('LLEN', list)
  return type(n) == 'number' and n > (sharing.look == 1 and n_free or 0)
end

-- Moves a text to the dead set that is too long for a worker. Returns whether it did.
local function bury_oversized(list, text)
  n_passed[list] = n_passed[list] or 0
  if not may_remove(list) or not add_oversized(list, text) then return false end
  redis.call('LREM', list, '-1', text)
  count('processed', 1)
  count('failed', 1)
  return true
end

-- The next texts of a contended list.
local function window(list)
  local n, texts, n_bytes, n_read, longest = redis.pcall('LLEN', list), {}, 0, 0, 1
  if type(n) ~= 'number' then return nil end
  local function has_space() return #texts == 0 or n_bytes < sharing.n_bytes end
  while n_read < sharing.n_texts and has_space() do
    -- Texts may be megabytes, and Lua has a whole page in memory.
    local n_fitting = math.max(1, math.floor(sharing.n_bytes / longest))
    local n_asked = math.min(16, n_read + 1, n_fitting, sharing.n_texts - n_read)
    local page = redis.pcall('LRANGE', list, digits(-n_read - n_asked), digits(-n_read - 1))
    for j = #page, 1, -1 do
      longest = math.max(longest, #page[j])
      local is_buried = #page[j] > tonumber(ARGV[10]) and bury_oversized(list, page[j])
      if not is_buried then n_read = n_read + 1 end
      if #page[j] <= tonumber(ARGV[10]) and has_space() then
        texts[#texts + 1], n_bytes = page[j], n_bytes + #page[j]
      end
    end
    if #page < n_asked then break end
  end
  local copies_key, far = n > n_read and copies_of(list), {}
  local ahead = copies_key and redis.pcall('LRANGE', copies_key, '0', '-1') or {}
  for _, text in ipairs(ahead) do
    if n_bytes < 2 * sharing.n_bytes then far[#far + 1], n_bytes = text, n_bytes + #text end
  end
  return { list, n, texts, far }
end

-- The windows of contended lists, and how the tenants stand that the worker asks for.
local function windows_of(lists)
  local windows, known = {}, {}
  for list in pairs(lists) do windows[#windows + 1] = window(list) end
  if #windows == 0 then return windows, false end
  local found_times, found_counts = { [clock_field] = 0 }, {}
  read_numbers(shares_key, { clock_field }, found_times)
  read_numbers(shares_key, sharing.tenants, found_times)
  read_numbers(running_key, sharing.counters, found_counts)
  known[1] = string.format('%.6f', found_times[clock_field])
  for _, tenant in ipairs(sharing.tenants) do known[#known + 1] = string.format('%.6f', found_times[tenant] or 0) end
  for _, counter in ipairs(sharing.counters) do known[#known + 1] = digits(found_counts[counter] or 0) end
  return windows, known
end

-- Fills the free slots, each from the queues of its fetch request in order. When there are too few jobs, it reads the lengths of
-- the lists. That arms client-side tracking: the next push wakes this worker.
local function fetch(tokens, fetch_requests)
  has_past = redis.call('EXISTS', KEYS[6], KEYS[7]) > 0
  local slots, is_paused = filled(tokens), paused()
  local most, longest = tonumber(ARGV[7]), tonumber(ARGV[10])
  local is_empty, added, is_short, is_cut, i = {}, {}, false, false, 0
  local n_bytes, n_failed, claimed, is_wanted = 0, 0, {}, {}
  -- A process that asks for jobs holds no suspect.
  if has_past then redis.pcall('SREM', KEYS[10], identity) end
  for _, taken in ipairs(slots) do is_cut = is_cut or taken and taken[3] > most end
  read_standing()
  for _, fetch_request in ipairs(fetch_requests) do
    local free, n_filled, is_undecided = {}, 0, false
    for _ = 1, fetch_request.slots do
      i = i + 1
      if not slots[i] then free[#free + 1] = i end
    end
    -- Takes a text into the next free slot, or leaves it. Returns whether to go on with its list, and the slot.
    local function offer(list, text, is_candidate)
      local taken = #text <= longest and slot(queue_name(list), text, 0)
      local is_suspect = taken and taken[3] > most and taken[4] <= tonumber(ARGV[8])
      if is_suspect and not takes_suspect() then return is_candidate or pass(list) end
      if not taken then
        is_cut = not (may_remove(list) and add_oversized(list, text))
        if not is_cut then
          remove(list, text)
          n_failed = n_failed + 1
        end
        return true
      end
      n_bytes = n_bytes + #text
      is_cut = n_bytes > tonumber(ARGV[9]) or not may_remove(list)
      if is_cut then return false end
      remove(list, text)
      n_filled = n_filled + 1
      local place = free[n_filled]
      taken[6] = taken[3] > 0 and 1 or 0
      slots[place] = taken
      added[#added + 1] = taken[6] == 1 and idle(tokens[place]) or tokens[place]
      added[#added + 1] = queue_name(list) .. '\n' .. text
      if is_suspect then
        is_cut = true
        redis.pcall('SADD', KEYS[10], identity)
      end
      return true, place
    end
    local function take_candidates(list)
      -- The texts are anywhere in the list.
      n_passed[list] = n_passed[list] or 0
      local candidates, n_missed, n_searched = sharing.decided[list].candidates, 0, 0
      while not is_cut and n_filled < #free and n_missed < most_missed and n_searched < most_searched do
        local candidate = next_candidate(candidates)
        if not candidate then return end
        local is_in_list, is_copied = is_there(list, candidate.text)
        if not is_in_list and is_copied then
          n_searched = n_searched + 1
          leave_out(list, candidates, candidate.claim.tenant)
        elseif not is_in_list then
          n_missed = n_missed + 1
        else
          local _, place = offer(list, candidate.text, true)
          if place then
            forget_copy(list, candidate.text)
            n_noted[list .. candidate.text] = (n_noted[list .. candidate.text] or 0) + 1
            claimed[#claimed + 1] = { tokens[place], candidate.claim }
            count_taken(candidate)
          end
        end
      end
    end
    for _, list in ipairs(fetch_request.lists) do
      if is_cut or is_undecided or n_filled == #free then break end
      local queue = queue_name(list)
      if is_paused[queue] then
        -- Nothing is taken.
      elseif sharing.decided[list] then
        take_candidates(list)
        is_wanted[list] = sharing.look > 0 and sharing.decided[list].wants_window or nil
        is_empty[list] = true
      elseif not is_empty[list] and is_contended(list, #free - n_filled) then
        is_wanted[list], is_undecided = true, true
      end
      while not is_empty[list] and not is_undecided and not is_paused[queue] and not is_cut and n_filled < #free do
        local n_asked = #free - n_filled
        local texts, is_over = peek(list, n_asked, n_seen[list] or 0), false
        for j = #texts, 1, -1 do
          is_over = not offer(list, texts[j], false)
          if is_cut or is_over then break end
        end
        is_empty[list] = not is_cut and (#texts < n_asked or is_over)
      end
    end
    is_short = is_short or not is_cut and not is_undecided and n_filled < #free
  end
  if #added > 0 then redis.call('HSET', inflight, unpack(added)) end
  for list, n in pairs(n_popped) do redis.call('RPOP', list, digits(n)) end
  for _, removed in ipairs(behind) do redis.call('LREM', removed[1], '-1', removed[2]) end
  count('processed', n_failed)
  count('failed', n_failed)
  write_claims(claimed)
  if is_short then
    for list in pairs(is_empty) do redis.pcall('LLEN', list) end
    local n = redis.pcall('SCARD', KEYS[8])
    idlers = type(n) == 'number' and n or 0
  end
  return slots, windows_of(is_wanted)
end

local incarnation, last_turn = string.match(redis.call('GET', KEYS[2]) or '', '^(%x+) (%d+)$')
local has_lease = incarnation == ARGV[5]
if has_lease and tonumber(ARGV[6]) < tonumber(last_turn) then
  return redis.error_reply('STALE a later turn was taken already')
end

-- Records the number of this turn. Returns whether Redis is at its memory limit, or another error, such as READONLY.
local function note()
  if not has_lease then return false, nil end
  local noted = redis.pcall('SET', KEYS[2], incarnation .. ' ' .. ARGV[6], 'KEEPTTL')
  if not noted.err then return false, nil end
  if string.find(noted.err, 'OOM', 1, true) then return true, nil end
  return false, noted
end

-- The first write. Redis refuses it at its memory limit; then nothing may be fetched.
local is_full, refusal = note()
if refusal then return refusal end

local settlements = {}
for i = 1, tonumber(argument()) do settlements[i] = read_settlement() end
local settled = settle_all(settlements)
-- The settlements have freed tokens, so no earlier turn may be accepted any more.
if is_full then note() end

local fetch_requests, tokens = {}, {}
for i = 1, tonumber(argument()) do
  fetch_requests[i] = { slots = tonumber(argument()), lists = {} }
  for place in string.gmatch(argument(), '%d+') do
    table.insert(fetch_requests[i].lists, KEYS[tonumber(place)])
  end
end

local function read_sharing()
  local read = { look = tonumber(argument()), n_texts = tonumber(argument()), n_bytes = tonumber(argument()) }
  read.tenants, read.counters, read.begun, read.decided = {}, {}, {}, {}
  for i = 1, tonumber(argument()) do read.tenants[i] = argument() end
  for i = 1, tonumber(argument()) do read.counters[i] = argument() end
  for i = 1, tonumber(argument()) do read.begun[i] = { token = argument(), claim = read_claim() } end
  for _ = 1, tonumber(argument()) do
    local list = KEYS[tonumber(argument())]
    local decision = { wants_window = argument() == '1', candidates = {} }
    for i = 1, tonumber(argument()) do decision.candidates[i] = { text = argument(), claim = read_claim() } end
    read.decided[list] = decision
  end
  return read
end

sharing = read_sharing()
for _, job in ipairs(has_lease and sharing.begun or {}) do
  local is_here = redis.call('HEXISTS', inflight, job.token) + redis.call('HEXISTS', inflight, idle(job.token)) > 0
  if is_here then claim(claims, job.token, job.claim.tenant, job.claim.weight, job.claim.seconds, job.claim.counters) end
end
while next_argument <= #ARGV do tokens[#tokens + 1] = argument() end
if #tokens == 0 then return { settled, {}, false, 0, oversized, {}, false } end
if not has_lease then return { settled, 'no lease', false, 0, oversized, {}, false } end
if is_full then return { settled, 'full', false, 0, oversized, {}, false } end
local slots, windows, known = fetch(tokens, fetch_requests)
return { settled, slots, passed_over, idlers, oversized, windows, known }
