#!lua
-- ARGV: NS, id, output, seconds
-- Reserve an output for a job that is about to be queued. '' if it has it now; else the id of another job
-- that has this output, one that contains it or one inside it. Queueing the job keeps the output for it;
-- if that does not happen in time, the output is free again.
local id, output = ARGV[2], ARGV[3]
local at = now()
local reserved = key('outputs_reserved')
-- What submissions have left that came to nothing; the rest at the next call.
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', reserved, '-inf', seconds(at), 'LIMIT', 0, 100)) do
  redis.call('ZREM', reserved, entry)
  redis.call('ZREM', key('outputs'), entry)
end
local other = output_holder(output, id, at)
if other then
  return other
end
local entry = output_entry(output, id)
local held = redis.call('ZSCORE', key('outputs'), entry) and not redis.call('ZSCORE', reserved, entry)
if not held then
  redis.call('ZADD', key('outputs'), 0, entry)
  redis.call('ZADD', reserved, seconds(at + tonumber(ARGV[4])), entry)
end
return ''
