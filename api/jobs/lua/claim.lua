-- ARGV: NS, id, worker id, lease seconds, nonce
-- Take a queued job: {fence, attempt}, or nil. The same call repeated (its nonce says so) gets the
-- same answer: the client library repeats a call whose answer was lost.
local id, nonce = ARGV[2], ARGV[5]
local job = load_job(id)
if job ~= nil and HELD[job.state] and job.claim_nonce == nonce then
  return {job.fence, job.attempt}
end
if job == nil or job.state ~= 'queued' then
  return false
end
local at = now()
local expires = seconds(at + tonumber(ARGV[4]))
local fence = string.format('%d', tonumber(job.fence) + 1)
local attempt = string.format('%d', tonumber(job.attempt) + 1)
local fields = {
  fence = fence, attempt = attempt, lease_owner = ARGV[3], lease_expires_at = expires,
  stop_requested = '', error = '', progress = '',
  claim_nonce = nonce,
}
if (job.started_at or '') == '' then
  fields.started_at = seconds(at)
end
if not move(id, job, 'running', fields, '') then
  return false
end
redis.call('ZADD', key('leases'), expires, id)
return {fence, attempt}
