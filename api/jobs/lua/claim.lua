#!lua flags=allow-oom
-- ARGV: NS, worker id, lease seconds, nonce, limits (JSON), free bytes of scratch
-- Claim the next job: the first in the line of the tenant whose turn it is (see `tenants_in_turn`) that
-- this worker has space for. {word, claim, the job's hash, jobs skipped for their size}; the word is
--   'claimed'  the claim is {id, fence, attempt, run, seconds to its deadline or ''}
--   'nothing'  no job is queued
--   'blocked'  the tenants with queued jobs are at their limit of running jobs
--   'no_room'  this worker has too little space for every queued job
-- The client library repeats a call whose answer was lost. Such a call has the same nonce and gets the
-- same answer.
local nonce = ARGV[4]
local at = now()
-- Most skipped jobs that are returned, of those that do not have this noted yet.
local MOST_NAMED = 10
local NONCE_SECONDS = 60

local function answer(id, job, left)
  local rest = (job.deadline_at or '') ~= '' and seconds(tonumber(job.deadline_at) - at) or ''
  local claim = {id, job.fence, job.attempt, job.run or '1', rest}
  return {'claimed', claim, redis.call('HGETALL', key('job', id)), left}
end

local before = redis.call('GET', key('claimed', nonce))
if before then
  local job = load_job(before)
  if job ~= nil and HELD[job.state] and job.claim_nonce == nonce then
    return answer(before, job, {})
  end
end

local id, why, passed = next_job(cjson.decode(ARGV[5]), tonumber(ARGV[6]), 0)
local left = {}
for _, large in ipairs(passed) do
  if #left < MOST_NAMED and redis.call('HGET', key('job', large), 'declined') ~= '1' then
    left[#left + 1] = large
  end
end
if not id then
  return {why, {}, {}, left}
end
local job = load_job(id)
local expires = seconds(at + tonumber(ARGV[3]))
-- Not just the next number: a server that has lost its last writes would give it to a second worker.
-- A microsecond comes once (and is exact in a double until 2255).
local fence = string.format('%.0f', math.max(tonumber(job.fence) + 1, at * 1e6))
local attempt = string.format('%d', tonumber(job.attempt) + 1)
local fields = {
  fence = fence, attempt = attempt, lease_owner = ARGV[2], lease_expires_at = expires,
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
redis.call('SET', key('claimed', nonce), id, 'EX', NONCE_SECONDS)
redis.call('HSET', key('served'), job.tenant, seconds(at))
redis.call('ZADD', key('turns'), seconds(at), job.tenant)
move(id, job, 'running', fields, '')
redis.call('ZADD', key('leases'), expires, id)
return answer(id, job, left)
