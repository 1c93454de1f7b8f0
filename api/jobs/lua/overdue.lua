#!lua flags=allow-oom
-- ARGV: NS, limit
-- Fail jobs whose deadline has passed while no worker holds them. The ids that changed state.
-- A worker watches the deadline of what it holds; if it dies, its lease brings the job back here.
local ids = redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', seconds(now()),
  'LIMIT', 0, ARGV[2])
local changed = {}
for _, id in ipairs(ids) do
  local job = load_job(id)
  if job == nil or TERMINAL[job.state] then
    redis.call('ZREM', key('deadlines'), id)
  elseif not HELD[job.state] then
    local failure = cjson.encode({
      code = 'deadline_exceeded', retryable = false, field = 'runtime.deadline_seconds',
      phase = cjson.null, layer = cjson.null,
      message = string.format('The job did not finish within its deadline of %d s.',
        tonumber(job.deadline_seconds)),
      remedy = 'Raise the deadline; it counts from the first start, also while the job is paused.',
    })
    move(id, job, 'failed', {error = failure}, 'deadline')
    changed[#changed + 1] = id
  end
end
return changed
