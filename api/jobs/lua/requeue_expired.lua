#!lua flags=allow-oom
-- ARGV: NS, limit
-- Take back jobs whose lease has expired. The ids that changed state.
local ids = redis.call('ZRANGEBYSCORE', key('leases'), '-inf', seconds(now()), 'LIMIT', 0, ARGV[2])
local changed = {}
for _, id in ipairs(ids) do
  local job = load_job(id)
  if job == nil or not HELD[job.state] then
    redis.call('ZREM', key('leases'), id)
  else
    local failure = cjson.encode({
      code = 'worker_lost', retryable = true, phase = cjson.null, layer = cjson.null,
      message = 'The worker stopped answering during attempt ' .. job.attempt .. ' of '
        .. job.max_attempts .. '.',
    })
    local to, fields = 'queued', {error = failure}
    if job.state == 'cancelling' then
      to, fields = 'cancelled', {}
    elseif tonumber(job.attempt) >= tonumber(job.max_attempts) then
      to = 'failed'
    elseif job.state == 'pausing' then
      to = 'paused'
    end
    move(id, job, to, fields, 'worker_lost')
    changed[#changed + 1] = id
  end
end
return changed
