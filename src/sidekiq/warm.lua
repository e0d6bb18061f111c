-- Says or changes who builds a base image on a pod. Answers who holds it: a claim, or `warm`.
--
-- KEYS: the base image on the pod
-- ARGV: the claim of the build, the step, milliseconds
local holder = redis.call('GET', KEYS[1])
if ARGV[2] == 'claim' and not holder then
  holder = ARGV[1]
  redis.call('SET', KEYS[1], holder, 'PX', ARGV[3])
elseif ARGV[2] == 'done' then
  holder = 'warm'
  redis.call('SET', KEYS[1], holder, 'PX', ARGV[3])
elseif ARGV[2] == 'give up' and holder == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return holder or ''
