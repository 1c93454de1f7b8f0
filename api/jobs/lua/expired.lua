#!lua flags=no-writes
-- ARGV: NS, limit
-- Ids of jobs whose lease has expired. Changes nothing.
return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', seconds(now()), 'LIMIT', 0, ARGV[2])
