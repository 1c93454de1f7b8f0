#!lua
-- ARGV: NS, id, run
-- Queue a job again whose run with this number failed or was cancelled. 1 if its next run exists now; 0
-- if the state forbids it or there is no such job.
local id, run = ARGV[2], tonumber(ARGV[3])
local job = load_job(id)
if job == nil then
  return 0
end
if tonumber(job.run or '1') > run then
  return 1
end
if not TERMINAL[job.state] then
  return 0
end
local fields = {
  run = string.format('%d', run + 1), attempt = '0', error = '', summary = '', progress = '',
  plan = '', started_at = '', finished_at = '', deadline_at = '', lined_up_at = '',
}
return move(id, job, 'queued', fields, 'retried') and 1 or 0
