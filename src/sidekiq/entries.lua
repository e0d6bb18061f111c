-- entries.lua: lists what a process has in flight, without the texts, which may be megabytes.
--
-- KEYS  1 in-flight hash of a process
-- ARGV  1 how many bytes from each end of a text count for its digest
--
-- Returns for each entry: field, queue, bytes of the text, sha1 of the text's first and last bytes. A value without a queue is left
-- out: sidebake writes no such entry.
--
-- Writes nothing.

local listed, n = {}, tonumber(ARGV[1])
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local entry = redis.call('HGET', KEYS[1], field)
  local feed = string.find(entry, '\n', 1, true)
  if feed then
    local text = string.sub(entry, feed + 1)
    local digest = redis.sha1hex(string.sub(text, 1, n) .. string.sub(text, -n))
    listed[#listed + 1] = { field, string.sub(entry, 1, feed - 1), #text, digest }
  end
end
return listed
