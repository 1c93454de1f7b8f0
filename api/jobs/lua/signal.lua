#!lua flags=no-writes
-- ARGV: NS, id, fence
-- What a heartbeat would return, without renewing the lease.
local fields = redis.call('HMGET', key('job', ARGV[2]), 'fence', 'state', 'stop_requested')
if fields[1] ~= ARGV[3] or not HELD[fields[2]] then
  return 'lost'
end
if (fields[3] or '') ~= '' then
  return fields[3]
end
return 'continue'
