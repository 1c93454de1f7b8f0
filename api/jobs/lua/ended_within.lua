#!lua flags=no-writes
-- ARGV: NS, seconds, limit
-- Ids and runs, in turn, of jobs that ended in the last seconds, the latest end first.
local since = seconds(now() - tonumber(ARGV[2]))
local found = {}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', key('ended'), '+inf', since, 'LIMIT', 0, ARGV[3])) do
  found[#found + 1] = id
  found[#found + 1] = redis.call('HGET', key('job', id), 'run') or '1'
end
return found
