#!lua flags=allow-oom
-- ARGV: NS, seconds, limit
-- Let workers claim jobs that have rested this long after a failure. Their ids.
local resting = key('resting')
local ids = redis.call('ZRANGEBYSCORE', resting, '-inf', seconds(now() - tonumber(ARGV[2])),
  'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do
  redis.call('ZREM', resting, id)
  local job = load_job(id)
  if job ~= nil and job.state == 'queued' then
    stand_in_line(id, job)
  end
end
return ids
