#!lua flags=allow-oom
-- ARGV: NS, worker, seconds, seconds of a class, name, value ...
-- Note that a worker is there, with these fields about it. One that is silent for so long is forgotten. How
-- fast its class is stays known for longer: a pool may have no worker at the moment.
local worker, at = ARGV[2], now()
local kept = tonumber(ARGV[3])
local about = key('worker', worker)
redis.call('HSETNX', about, 'started_at', seconds(at))
redis.call('HSET', about, 'seen_at', seconds(at), unpack(ARGV, 5))
for i = 5, #ARGV, 2 do
  if ARGV[i] == 'job_id' then
    redis.call('HSET', about, 'busy_at', ARGV[i + 1] == '' and '0' or seconds(at))
  end
end
redis.call('PEXPIRE', about, math.ceil(kept * 1000))
redis.call('ZADD', key('workers'), seconds(at), worker)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', seconds(at - kept))
local pool, rates = unpack(redis.call('HMGET', about, 'pool', 'rates'))
if rates then
  local measured = cjson.decode(rates)
  local class = cjson.encode({pool or '', measured.device, measured.threads})
  redis.call('HSET', key('classes'), class, rates)
  redis.call('ZADD', key('classes_seen'), seconds(at), class)
  local before = seconds(at - tonumber(ARGV[4]))
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', key('classes_seen'), '-inf', before)) do
    redis.call('HDEL', key('classes'), old)
    redis.call('ZREM', key('classes_seen'), old)
  end
end
return 1
