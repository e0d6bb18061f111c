-- queued.lua: shows where waiting jobs stand.
--
-- KEYS  1 the list   2 the lock: `sidebake:queued:<queue>`   3… `it-<jid>` of each job
-- ARGV  1 identity of this process   2 how many texts at the head of the list may hold the jobs   3 seconds for which a hash is kept
--       4 the same for a cancelled job   then for each job: sha1 of its text, what is shown (JSON text)
--
-- Invariant: only a job that is still in the list is written about, or this would bring back what settling has removed.

if redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
local waiting = {}
for _, text in ipairs(redis.call('LRANGE', KEYS[1], '-' .. ARGV[2], '-1')) do waiting[redis.sha1hex(text)] = true end
for i = 3, #KEYS do
  local digest, shown = ARGV[5 + (i - 3) * 2], ARGV[6 + (i - 3) * 2]
  -- A key of another type must not hide the other jobs.
  local known = waiting[digest] and redis.pcall('HMGET', KEYS[i], 'cancelled', 'c')
  if known and not known.err then
    local is_cancelled, is_old, life_s = known[1] and true, known[2] ~= shown, tonumber(ARGV[3])
    if is_old and not is_cancelled then redis.pcall('HSET', KEYS[i], 'ex', '0', 'c', shown, 'rt', '0') end
    -- Sidekiq's cancel! sets no TTL on a hash that has one. The mark needs a longer one than what is shown.
    if is_cancelled then life_s = tonumber(ARGV[4]) end
    local left_s = redis.pcall('TTL', KEYS[i])
    if type(left_s) ~= 'number' or left_s < life_s / 2 then redis.pcall('EXPIRE', KEYS[i], string.format('%d', life_s)) end
  end
end
