-- ARGV: NS, id, fence
-- Give the job back at a safe point, without using up the attempt. Where it goes depends on why the
-- worker stopped: a drain requeues, a pause pauses, a cancellation cancels. 1, or 0 if not the holder.
local id = ARGV[2]
local job = load_job(id)
if not holds(job, ARGV[3]) then
  return 0
end
local targets = {running = 'queued', pausing = 'paused', cancelling = 'cancelled'}
local attempt = string.format('%d', math.max(0, tonumber(job.attempt) - 1))
move(id, job, targets[job.state], {attempt = attempt}, 'released')
return 1
