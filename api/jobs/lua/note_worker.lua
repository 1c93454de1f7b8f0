#!lua flags=allow-oom
-- ARGV: NS, worker, seconds, name, value ...
-- Note that a worker is there, with these fields about it. One that is silent for so long is forgotten.
local worker, at = ARGV[2], now()
local kept = tonumber(ARGV[3])
local about = key('worker', worker)
redis.call('HSETNX', about, 'started_at', seconds(at))
redis.call('HSET', about, 'seen_at', seconds(at), unpack(ARGV, 4))
for i = 4, #ARGV, 2 do
  if ARGV[i] == 'job_id' then
    redis.call('HSET', about, 'busy_at', ARGV[i + 1] == '' and '0' or seconds(at))
  end
end
redis.call('PEXPIRE', about, math.ceil(kept * 1000))
redis.call('ZADD', key('workers'), seconds(at), worker)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', seconds(at - kept))
return 1
