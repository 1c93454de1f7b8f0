#!lua flags=allow-oom
-- ARGV: NS, id, fence, error (JSON), plan (JSON, or '' to leave it as it is)
-- A retryable failure: the job is queued, to rest a while, if attempts are left, else failed. A
-- requested stop comes first. The job's state afterwards (unchanged under a stale fence), or nil if
-- there is no such job.
local id, failure = ARGV[2], ARGV[4]
local job = load_job(id)
if job == nil then
  return false
end
if not holds(job, ARGV[3]) then
  -- The lease expired before the cause was known: the plan still counts for the next attempt.
  if job.fence == ARGV[3] and job.state == 'queued' and ARGV[5] ~= '' then
    set_fields(id, {plan = ARGV[5], error = failure})
  end
  return job.state
end
local to
if job.state == 'cancelling' then
  to = 'cancelled'
elseif tonumber(job.attempt) >= tonumber(job.max_attempts) then
  to = 'failed'
elseif job.state == 'pausing' then
  to = 'paused'
else
  to = 'queued'
end
local fields = {error = to == 'cancelled' and '' or failure}
if ARGV[5] ~= '' then
  fields.plan = ARGV[5]
end
move(id, job, to, fields, 'retry', true)
return to
