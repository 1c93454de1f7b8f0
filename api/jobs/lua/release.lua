#!lua flags=allow-oom
-- ARGV: NS, id, fence, nonce, error (JSON or ''), whether it rests if it is queued ('1' or '')
-- Give the job back at a safe point, without counting the attempt. Its next state depends on why the
-- worker stopped: a drain requeues, a pause pauses, a cancellation cancels. 1, or 0 if the caller is
-- not the holder. A repeated call (see claim) gets 1 again.
local id, nonce = ARGV[2], ARGV[4]
local job = load_job(id)
if job ~= nil and job.release_nonce == nonce then
  return 1
end
if not holds(job, ARGV[3]) then
  return 0
end
local targets = {running = 'queued', pausing = 'paused', cancelling = 'cancelled'}
local attempt = string.format('%d', math.max(0, tonumber(job.attempt) - 1))
local fields = {attempt = attempt, release_nonce = nonce}
if targets[job.state] == 'queued' then
  fields.error = ARGV[5]
end
move(id, job, targets[job.state], fields, 'released', ARGV[6] == '1')
return 1
