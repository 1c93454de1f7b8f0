#!lua flags=allow-oom
-- ARGV: NS, tenant, tokens per second, most tokens
-- Take a token from the tenant's bucket. '0', or the seconds until there will be one.
local bucket = key('tenant', ARGV[2], 'tokens')
local rate, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local at = now()
local found = redis.call('HMGET', bucket, 'tokens', 'at')
local tokens = most
if found[1] then
  -- If the clock went back, no tokens are lost and the bucket still fills.
  local passed = math.max(0, at - tonumber(found[2]))
  tokens = math.min(most, tonumber(found[1]) + passed * rate)
end
local wait = 0
if tokens >= 1 then
  tokens = tokens - 1
else
  wait = (1 - tokens) / rate
end
redis.call('HSET', bucket, 'tokens', seconds(tokens), 'at', seconds(at))
-- The bucket is full by then, and a missing bucket counts as full.
redis.call('PEXPIRE', bucket, math.ceil(most / rate * 1000) + 1000)
return seconds(wait)
