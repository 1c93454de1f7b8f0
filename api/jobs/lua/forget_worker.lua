#!lua flags=allow-oom
-- ARGV: NS, worker
-- Note that a worker has ended.
redis.call('ZREM', key('workers'), ARGV[2])
redis.call('DEL', key('worker', ARGV[2]))
return 1
