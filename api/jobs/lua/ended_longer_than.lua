#!lua flags=no-writes
-- ARGV: NS, seconds, limit
-- Ids of jobs that ended this long ago, the earliest end first.
return redis.call('ZRANGEBYSCORE', key('ended'), '-inf', seconds(now() - tonumber(ARGV[2])),
  'LIMIT', 0, ARGV[3])
