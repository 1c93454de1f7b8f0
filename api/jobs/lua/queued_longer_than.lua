-- ARGV: NS, seconds, limit
-- Ids of jobs queued, and not returned by this script, for that long. Returning them restarts their
-- wait, so several reconcilers do not all ring for the same job.
local at = now()
local ids = redis.call('ZRANGEBYSCORE', key('queued'), '-inf', seconds(at - tonumber(ARGV[2])),
  'LIMIT', 0, ARGV[3])
for _, id in ipairs(ids) do
  redis.call('ZADD', key('queued'), 'XX', seconds(at), id)
end
return ids
