#!lua flags=allow-oom
-- ARGV: NS, id, fence, state, error (JSON or ''), summary (JSON or '')
-- End a job. 1, or 0 if the fence is stale or the state forbids it. A second call is no error: the
-- client library repeats a call whose answer was lost.
local id, state = ARGV[2], ARGV[4]
local job = load_job(id)
if job ~= nil and job.fence == ARGV[3] and job.state == state then
  return 1
end
if not holds(job, ARGV[3]) then
  return 0
end
return move(id, job, state, {error = ARGV[5], summary = ARGV[6]}, '') and 1 or 0
