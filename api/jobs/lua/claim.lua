-- ARGV: NS, id, worker id, lease seconds, nonce, jobs that the tenant may have running ('': any)
-- Take a queued job: {fence, attempt, run, seconds to its deadline or ''}, or a word why not:
-- 'duplicate' (nobody waits for a worker there), 'blocked' (the tenant's other jobs must end
-- first). The same call repeated (its nonce says so) gets the same answer: the client library
-- repeats a call whose answer was lost.
local id, nonce = ARGV[2], ARGV[5]
local job = load_job(id)
local at = now()

local function answer()
  local left = (job.deadline_at or '') ~= '' and seconds(tonumber(job.deadline_at) - at) or ''
  return {job.fence, job.attempt, job.run or '1', left}
end

if job ~= nil and HELD[job.state] and job.claim_nonce == nonce then
  return answer()
end
if job == nil or job.state ~= 'queued' then
  return 'duplicate'
end
if ARGV[6] ~= '' and tenant_jobs(job.tenant, HELD) >= tonumber(ARGV[6]) then
  local rank = {high = 0, normal = 1, low = 2}
  redis.call('ZADD', key('tenant', job.tenant, 'blocked'),
    'NX', seconds(rank[job.priority] * 1e10 + at), id)
  withdraw(id)
  return 'blocked'
end
local expires = seconds(at + tonumber(ARGV[4]))
-- Not the next number alone: a server that has lost its last writes would hand it out again, beside
-- the worker that has it. A microsecond comes once (and is exact in a double until 2255).
local fence = string.format('%.0f', math.max(tonumber(job.fence) + 1, at * 1e6))
local attempt = string.format('%d', tonumber(job.attempt) + 1)
local fields = {
  fence = fence, attempt = attempt, lease_owner = ARGV[3], lease_expires_at = expires,
  stop_requested = '', error = '', progress = '',
  claim_nonce = nonce, workers = '1', help_failures = '0',
}
if (job.started_at or '') == '' then
  fields.started_at = seconds(at)
  if (job.deadline_seconds or '') ~= '' then
    fields.deadline_at = seconds(at + tonumber(job.deadline_seconds))
    redis.call('ZADD', key('deadlines'), fields.deadline_at, id)
  end
end
move(id, job, 'running', fields, '')
redis.call('ZADD', key('leases'), expires, id)
return answer()
