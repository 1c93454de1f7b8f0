#!lua flags=allow-oom
-- ARGV: NS, id, 'cancel' | 'pause' | 'resume'
-- Carry out a user's request, or ask the worker to. If the job's state forbids it, nothing changes.
-- 1 if the job exists, else 0.
local id, verb = ARGV[2], ARGV[3]
local job = load_job(id)
if job == nil then
  return 0
end
local targets = {
  cancel = {queued = 'cancelled', paused = 'cancelled', running = 'cancelling', pausing = 'cancelling'},
  pause = {queued = 'paused', running = 'pausing'},
  -- Withdrawing a pause: if the worker has already stopped, its release requeues the job.
  resume = {paused = 'queued', pausing = 'running'},
}
local to = targets[verb][job.state]
if to ~= nil then
  local fields = {stop_requested = verb == 'resume' and '' or verb}
  if job.declined == '1' then
    fields.error = ''  -- it said why the job stays queued
  end
  move(id, job, to, fields, 'requested')
end
return 1
