#!lua flags=allow-oom
-- ARGV: NS, id, fence, seat, whether the helper has failed ('1' or '')
-- Give a seat and its unit back. 1, or 0 if the seat was not held.
local id, seat = ARGV[2], ARGV[4]
local job = load_job(id)
if not holds(job, ARGV[3]) or not redis.call('ZSCORE', key('job', id, 'seats'), seat) then
  return 0
end
if ARGV[5] == '1' then
  redis.call('HINCRBY', key('job', id), 'help_failures', 1)
end
leave_seat(id, job, seat)
return 1
