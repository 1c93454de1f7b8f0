#!lua
-- ARGV: NS, tenant, id, limit, seconds
-- Reserve a place among the tenant's jobs that have not ended. 1, or 0 if none is free. A job keeps its
-- reservation. Entering or queueing the job turns it into a place.
local tenant, id = ARGV[2], ARGV[3]
local reserved = key('tenant', tenant, 'reserved')
local at = now()
redis.call('ZREMRANGEBYSCORE', reserved, '-inf', seconds(at))
local job = load_job(id)
if (job ~= nil and not TERMINAL[job.state]) or redis.call('ZSCORE', reserved, id) then
  return 1
end
local open = {}
for state in pairs(TRANSITIONS) do
  open[state] = not TERMINAL[state] or nil
end
if tenant_jobs(tenant, open) + redis.call('ZCARD', reserved) >= tonumber(ARGV[4]) then
  return 0
end
redis.call('ZADD', reserved, seconds(at + tonumber(ARGV[5])), id)
return 1
