#!lua flags=allow-oom
-- ARGV: NS, role, holder, seconds
-- Take a role that one process at a time may have, or keep it. 1, or 0 if another one has it.
local role = key('role', ARGV[2])
local holder = redis.call('GET', role)
if holder and holder ~= ARGV[3] then
  return 0
end
redis.call('SET', role, ARGV[3], 'EX', ARGV[4])
return 1
