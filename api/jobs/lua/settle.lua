#!lua flags=allow-oom
-- ARGV: NS, id, state, error (JSON or ''), summary (JSON or ''), finished_at, run
-- Copy an outcome committed to the journal. The journal is the truth, so this is the one verb that
-- asks neither the fence nor the transition table; only the run must be the job's present one. 1 if
-- something changed, else 0.
local id, state = ARGV[2], ARGV[3]
local job = load_job(id)
if job == nil or job.state == state or (job.run or '1') ~= ARGV[7] then
  return 0
end
local fields = {error = ARGV[4], summary = ARGV[5], finished_at = ARGV[6]}
enter(id, job, state, fields, 'settled')
return 1
