-- poller.lua: takes, keeps or gives back the turn of the one process that looks for due jobs.
--
-- KEYS  1 `sidebake:poller:…` of these settings
-- ARGV  1 identity of this process   2 for how long no other process looks, ms; 0 gives the turn back
--
-- Returns 1 when this process looks now, 0 when another one does or may.
--
-- It saves work and protects nothing: due.lua moves a job once, however many processes look.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
-- Redis never refuses DEL at its memory limit. After it, the script may write as well.
redis.call('DEL', KEYS[1])
if ARGV[2] == '0' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
