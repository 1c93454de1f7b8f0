-- ARGV: NS, tenant
-- {id, priority} of the next of the tenant's queued jobs that a worker left because too many others
-- ran, or nil. It is no longer counted as left: whoever asks must ring for it.
local blocked = key('tenant', ARGV[2], 'blocked')
while true do
  local popped = redis.call('ZPOPMIN', blocked)
  if #popped == 0 then
    return false
  end
  local job = load_job(popped[1])
  if job ~= nil and job.state == 'queued' then
    offer(popped[1], job)
    return {popped[1], job.priority}
  end
end
