#!lua flags=allow-oom
-- ARGV: NS, seconds, limit
-- Jobs that want help and were not rung for this long: {id, doorbells to ring, id, ...}. Being returned
-- counts as being rung for.
local at = now()
local help = key('help')
local ids = redis.call('ZRANGEBYSCORE', help, '-inf', seconds(at - tonumber(ARGV[2])),
  'LIMIT', 0, ARGV[3])
local found = {}
for _, id in ipairs(ids) do
  local job = load_job(id)
  free_lapsed(id, job, at)
  local wanted = math.min(tonumber(job.unclaimed), free_seats(id, job))
  if wanted > 0 then
    redis.call('ZADD', help, 'XX', seconds(at), id)
    found[#found + 1] = id
    found[#found + 1] = wanted
  else
    redis.call('ZREM', help, id)
  end
end
return found
