#!lua flags=no-writes
-- ARGV: NS, ids
-- The hash of each job as a list of names and values, {} if there is none, all as one JSON text. Python
-- parses that many times faster than an answer of some sixty strings for each job.
local found = {}
for i = 2, #ARGV do
  found[i - 1] = redis.call('HGETALL', ARGV[1] .. ':job:' .. ARGV[i])
end
return cjson.encode(found)
