#!lua flags=no-writes
-- ARGV: NS, seconds, limit
-- Ids of jobs that have been over for that long, the first to end first.
return redis.call('ZRANGEBYSCORE', key('ended'), '-inf', seconds(now() - tonumber(ARGV[2])),
  'LIMIT', 0, ARGV[3])
