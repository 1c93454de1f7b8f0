#!lua
-- ARGV: NS, id, seat, seconds, limits (JSON), free bytes of scratch
-- Take a seat at a running job, if it wants help and no job is queued that this worker could start (see
-- reserve_unit): {fence, attempt, run}, or nil. The caller names the seat, so a repeated call gets the
-- same answer.
local id, seat = ARGV[2], ARGV[3]
local job = load_job(id)
if job == nil or job.state ~= 'running' then
  return false
end
local at = now()
local seats = key('job', id, 'seats')
free_lapsed(id, job, at)
local has = redis.call('ZSCORE', seats, seat)
if not has and (not redis.call('ZSCORE', key('help'), id) or free_seats(id, job) == 0) then
  return false
end
if not has and next_job(cjson.decode(ARGV[5]), tonumber(ARGV[6]), YIELD_SECONDS) then
  return false
end
redis.call('ZADD', seats, seconds(at + tonumber(ARGV[4])), seat)
if not has then
  count_workers(id, job)
end
return {job.fence, job.attempt, job.run or '1'}
