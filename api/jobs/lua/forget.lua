#!lua flags=allow-oom
-- ARGV: NS, id, run ('': any)
-- Remove an ended job with all its keys. 1 if it is gone, else 0: it has not ended, or is in another
-- run.
local id = ARGV[2]
local job = load_job(id)
if job == nil then
  return 1
end
if not TERMINAL[job.state] or (ARGV[3] ~= '' and (job.run or '1') ~= ARGV[3]) then
  return 0
end
count(job, job.state, -1)
redis.call('ZREM', key('tenant', job.tenant, 'all'), job.position)
if redis.call('HINCRBY', key('kept'), job.tenant, -tonumber(job.kept_bytes or '0')) <= 0 then
  redis.call('HDEL', key('kept'), job.tenant)
end
redis.call('ZREM', key('ended'), id)
redis.call('DEL', key('job', id), key('job', id, 'events'), key('job', id, 'logs'))
wake(id)
return 1
