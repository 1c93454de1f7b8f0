#!lua flags=allow-oom
-- ARGV: NS, id, fence, seat, seconds
-- Renew a seat: 'continue', 'cancel', 'pause' or 'lost'.
local id, seat = ARGV[2], ARGV[4]
local job = load_job(id)
if not holds(job, ARGV[3]) then
  return 'lost'
end
local at = now()
free_lapsed(id, job, at)
if not redis.call('ZSCORE', key('job', id, 'seats'), seat) then
  return 'lost'
end
redis.call('ZADD', key('job', id, 'seats'), seconds(at + tonumber(ARGV[5])), seat)
if (job.stop_requested or '') ~= '' then
  return job.stop_requested
end
return 'continue'
