#!lua
-- ARGV: NS, id, position, then field, value, ...
-- Enter a new job as queued. 1, or 0 if it exists already.
local id, position = ARGV[2], ARGV[3]
if redis.call('EXISTS', key('job', id)) == 1 then
  return 0
end
local job = {}
for i = 4, #ARGV, 2 do
  job[ARGV[i]] = ARGV[i + 1]
end
local at = now()
job.position = position
job.state = 'queued'
job.revision = '1'
job.attempt = '0'
job.updated_at = seconds(at)
job.lined_up_at = seconds(at)
set_fields(id, job)
redis.call('ZADD', key('tenant', job.tenant, 'all'), 0, position)
count(job, 'queued', 1)
hold_output(id, job)
line_up(id, job, at, false)
append_event(id, 'state', cjson.encode({state = 'queued', run = tonumber(job.run or '1'), attempt = 0}))
weigh(id, job)
return 1
