-- ARGV: NS, priority, seconds, limit
-- Ids of jobs queued, and not returned by this script, for that long; the longest wait first.
-- Returning them restarts their wait, so they go to the end of the line, and several reconcilers do
-- not all ring for the same job.
local at = now()
local queued = key('queued', ARGV[2])
local ids = redis.call('ZRANGEBYSCORE', queued, '-inf', seconds(at - tonumber(ARGV[3])),
  'LIMIT', 0, ARGV[4])
for _, id in ipairs(ids) do
  redis.call('ZADD', queued, 'XX', seconds(at), id)
end
return ids
