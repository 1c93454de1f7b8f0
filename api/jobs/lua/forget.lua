#!lua flags=allow-oom
-- ARGV: NS, id
-- Remove a job that is over, with all that is known of it. 1 if it is not there (any more), else 0.
local id = ARGV[2]
local job = load_job(id)
if job == nil then
  return 1
end
if not TERMINAL[job.state] then
  return 0
end
count(job, job.state, -1)
redis.call('ZREM', key('tenant', job.tenant, 'all'), job.position)
for _, label in ipairs(cjson.decode(job.label_index or '[]')) do
  redis.call('ZREM', key('tenant', job.tenant, 'label', label), job.position)
end
redis.call('ZREM', key('ended'), id)
redis.call('DEL', key('job', id), key('job', id, 'events'), key('job', id, 'logs'))
wake(id)
return 1
