#!lua flags=allow-oom
-- ARGV: NS, id, state, error (JSON or ''), summary (JSON or ''), finished_at, run
-- Copy an outcome from the journal. The journal decides, so this is the one verb that checks neither
-- the fence nor the transition table. Only the run must be the job's present one. 1 if something
-- changed, else 0.
local id, state = ARGV[2], ARGV[3]
local job = load_job(id)
if job == nil or job.state == state or (job.run or '1') ~= ARGV[7] then
  return 0
end
-- The time is by another clock, which may be wrong. Retention counts from it, so it is kept between the
-- job's start and now.
local began = (job.started_at or '') ~= '' and job.started_at or job.created_at
local finished_at = math.min(now(), math.max(tonumber(ARGV[6]), tonumber(began)))
local fields = {error = ARGV[4], summary = ARGV[5], finished_at = seconds(finished_at)}
enter(id, job, state, fields, 'settled')
return 1
