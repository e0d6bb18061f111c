-- turn.lua: settles what has finished and fetches for the free slots, in one step.
--
-- KEYS  1 in-flight hash of this process   2 its lease   3 `queues`   4 `retry`   5 `dead`
--       6 `stat:processed`   7 the same of today   8 `stat:failed`   9 the same of today
--       10 `sidebake:recoveries`   11 `sidebake:interruptions`   12 `sidebake:owners`   13 `paused`
--       14… the lists that follow are named by their place in KEYS
-- ARGV  1 now, float seconds   2 oldest score kept in `dead`   3 entries kept in `dead`
--       4 number of this turn   5 number of settlements, then each: token, processed (0/1), failed (0/1), number of effects, then each
--         effect: kind, place of a list in KEYS or score, text
--           push   LPUSH the text on the list
--           head   RPUSH the text as it was fetched, on the list; the effect's text is not used
--           interrupted   the same, and count it
--           retry  ZADD the text with the score
--           bury   ZADD the text to `dead` with the score, and trim
--           unlink UNLINK the key at that place
--         then the number of demands, then each: number of slots, and the places of the queues that are asked for them, in
--         order, with spaces between; then the tokens of the free slots, demand by demand
--
-- Returns {settlements, slots, wrong, idlers}. A settlement is 1: done; 0: the token is not ours any more, and nothing was done;
-- or the name of a key of the wrong type, or what Redis said, and nothing was done. A slot is {queue, text, times recovered, times
-- interrupted} or false.
-- `slots` is the text "no lease" when there is none: a process that others may take for dead must not fetch; and "full"
-- when Redis is at its memory limit: what has finished is settled all the same, and nothing is fetched.
-- `wrong` is the name of a queue's key that is not a list, or false; such a queue is passed over. `idlers` is how many
-- processes may be waiting for the same push, or 0 when this one was given all that it asked for.
--
-- Invariant: an entry is in exactly one place. The fence and the types are checked before the first write of a
-- settlement, and a slot that was filled before is answered again, so the script may be sent any number of times.
-- The lease holds the number of the last turn: a turn that arrives after a later one (it was given up, sent again, and
-- then the network delivered it after all) does nothing, or it would fill a token that was used already.

local inflight = KEYS[1]
local next_argument = 5

local function argument()
  local value = ARGV[next_argument]
  next_argument = next_argument + 1
  return value
end

local function is_type(key, wanted)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == wanted
end

local function queue_name(key)
  return string.sub(key, 7)
end

-- How often something happened to a text, when the last time was within three days: Sidekiq Pro's limit for poison pills.
-- The value is the number and the time, seconds since the epoch.
local counted_s = 259200

local function times(key, digest)
  local value = redis.pcall('HGET', key, digest)
  local n, at = string.match(type(value) == 'string' and value or '', '^(%d+) (%d+)$')
  if n and tonumber(ARGV[1]) - tonumber(at) < counted_s then return tonumber(n) end
  return 0
end

local function effects(n)
  local list = {}
  for i = 1, n do
    list[i] = { kind = argument(), place = argument(), text = argument() }
  end
  return list
end

-- The keys that an effect writes, each with its type.
local function targets(effect)
  if effect.kind == 'retry' then return { [KEYS[4]] = 'zset' } end
  if effect.kind == 'bury' then return { [KEYS[5]] = 'zset' } end
  if effect.kind == 'unlink' then return {} end
  local keys = { [KEYS[tonumber(effect.place)]] = 'list', [KEYS[3]] = 'set' }
  if effect.kind == 'interrupted' then keys[KEYS[11]] = 'hash' end
  return keys
end

local function wrong_key(list)
  for _, effect in ipairs(list) do
    for key, wanted in pairs(targets(effect)) do
      if not is_type(key, wanted) then return key end
    end
  end
  return nil
end

local function apply(effect, fetched_text)
  if effect.kind == 'retry' then
    redis.call('ZADD', KEYS[4], effect.place, effect.text)
    return
  end
  if effect.kind == 'bury' then
    redis.call('ZADD', KEYS[5], effect.place, effect.text)
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', ARGV[2])
    redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -(tonumber(ARGV[3])))
    return
  end
  local key = KEYS[tonumber(effect.place)]
  if effect.kind == 'unlink' then
    redis.call('UNLINK', key)
    return
  end
  redis.call('SADD', KEYS[3], queue_name(key))
  if effect.kind == 'push' then
    redis.call('LPUSH', key, effect.text)
    return
  end
  redis.call('RPUSH', key, fetched_text)
  if effect.kind == 'interrupted' then
    local digest = redis.sha1hex(fetched_text)
    local n = times(KEYS[11], digest) + 1
    redis.call('HSET', KEYS[11], digest, string.format('%d %d', n, math.floor(tonumber(ARGV[1]))))
    redis.call('EXPIRE', KEYS[11], counted_s)
  end
end

local function text_of(entry)
  return string.sub(entry, string.find(entry, '\n', 1, true) + 1)
end

local n_processed, n_failed = 0, 0

local function settle()
  local token, processed, failed = argument(), argument(), argument()
  local list = effects(tonumber(argument()))
  if #list == 0 then
    if redis.call('HDEL', inflight, token) == 0 then return 0 end
  else
    local entry = redis.call('HGET', inflight, token)
    if not entry then return 0 end
    local wrong = wrong_key(list)
    if wrong then return wrong end
    redis.call('HDEL', inflight, token)
    for i, effect in ipairs(list) do
      local is_done, refusal = pcall(apply, effect, text_of(entry))
      if not is_done then
        -- Such as an ACL without ZADD. Redis takes nothing back, so we do, where nothing else has happened yet.
        if i == 1 then redis.call('HSET', inflight, token, entry) end
        return type(refusal) == 'table' and refusal.err or tostring(refusal)
      end
    end
  end
  n_processed, n_failed = n_processed + tonumber(processed), n_failed + tonumber(failed)
  return 1
end

-- Once a turn. A key of another type must cost no job its result.
local function count(n, total, today)
  if n == 0 then return end
  redis.pcall('INCRBY', total, n)
  redis.pcall('INCRBY', today, n)
  redis.pcall('EXPIRE', today, 157680000)
end

local wrong_queue, idlers = false, 0

-- What Sidekiq Pro has paused, by name. Reading it arms client-side tracking as well.
local function paused()
  local names, is_paused = redis.pcall('SMEMBERS', KEYS[13]), {}
  for _, name in ipairs(names.err and {} or names) do is_paused[name] = true end
  return is_paused
end

-- Fills the slots that are free, each from the queues of its demand in order; what was filled by the same turn before stays
-- as it is. When there is too little, reading the lengths of the lists arms client-side tracking: the next push wakes us.
local function take(tokens, demands)
  local entries, is_paused = redis.call('HMGET', inflight, unpack(tokens)), paused()
  local is_empty, added, is_short, i = {}, {}, false, 0
  for _, demand in ipairs(demands) do
    local free, n_taken = {}, 0
    for _ = 1, demand.slots do
      i = i + 1
      if not entries[i] then free[#free + 1] = i end
    end
    for _, queue in ipairs(demand.queues) do
      if n_taken == #free then break end
      if not is_empty[queue] and not is_paused[queue_name(queue)] then
        local texts = redis.pcall('RPOP', queue, #free - n_taken)
        if texts and texts.err then
          wrong_queue, texts = queue, nil
        end
        for _, text in ipairs(texts or {}) do
          n_taken = n_taken + 1
          local slot = free[n_taken]
          entries[slot] = queue_name(queue) .. '\n' .. text
          added[#added + 1] = tokens[slot]
          added[#added + 1] = entries[slot]
        end
        is_empty[queue] = n_taken < #free
      end
    end
    is_short = is_short or n_taken < #free
  end
  if #added > 0 then redis.call('HSET', inflight, unpack(added)) end
  if is_short then
    for queue in pairs(is_empty) do redis.pcall('LLEN', queue) end
    local n = redis.pcall('SCARD', KEYS[12])
    idlers = type(n) == 'number' and n or 0
  end
  return entries
end

local function fetch(tokens, demands)
  -- Nothing has happened to most jobs, and then there is nothing to look up.
  local has_past = redis.call('EXISTS', KEYS[10], KEYS[11]) > 0
  local slots = {}
  for i, entry in ipairs(take(tokens, demands)) do
    if entry then
      local queue = string.sub(entry, 1, string.find(entry, '\n', 1, true) - 1)
      local text = text_of(entry)
      local digest = has_past and redis.sha1hex(text)
      slots[i] = { queue, text, digest and times(KEYS[10], digest) or 0, digest and times(KEYS[11], digest) or 0 }
    else
      slots[i] = false
    end
  end
  return slots
end

local last_turn = redis.call('GET', KEYS[2])
if last_turn and tonumber(ARGV[4]) < tonumber(last_turn) then
  return redis.error_reply('STALE a later turn was taken already')
end

-- Notes that this turn was taken. Returns whether Redis is at its memory limit, or what else it says, such as READONLY.
local function note()
  if not last_turn then return false, nil end
  local noted = redis.pcall('SET', KEYS[2], ARGV[4], 'KEEPTTL')
  if not noted.err then return false, nil end
  if string.find(noted.err, 'OOM', 1, true) then return true, nil end
  return false, noted
end

-- The first write: Redis refuses it at its memory limit, and then nothing may be fetched. Settling begins with a write
-- that frees memory, after which Redis lets a script go on.
local is_full, refusal = note()
if refusal then return refusal end

local settled = {}
for i = 1, tonumber(argument()) do settled[i] = settle() end
-- What was settled has made tokens free, so no turn before this one may be delivered any more.
if is_full then note() end
count(n_processed, KEYS[6], KEYS[7])
count(n_failed, KEYS[8], KEYS[9])

local demands, tokens = {}, {}
for i = 1, tonumber(argument()) do
  demands[i] = { slots = tonumber(argument()), queues = {} }
  for place in string.gmatch(argument(), '%d+') do
    table.insert(demands[i].queues, KEYS[tonumber(place)])
  end
end
while next_argument <= #ARGV do tokens[#tokens + 1] = argument() end
if #tokens == 0 then return { settled, {}, false, 0 } end
if not last_turn then return { settled, 'no lease', false, 0 } end
if is_full then return { settled, 'full', false, 0 } end
return { settled, fetch(tokens, demands), wrong_queue, idlers }
