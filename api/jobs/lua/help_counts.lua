#!lua flags=no-writes
-- ARGV: NS
-- {workers that help with jobs, further workers that would find units to do}. Changes nothing.
local at = now()
local helping, wanted = 0, 0
for _, id in ipairs(redis.call('ZRANGE', key('leases'), 0, -1)) do
  helping = helping + redis.call('ZCOUNT', key('job', id, 'seats'), seconds(at), '+inf')
end
for _, id in ipairs(redis.call('ZRANGE', key('help'), 0, -1)) do
  local job = load_job(id)
  wanted = wanted + math.min(tonumber(job.unclaimed), free_seats(id, job))
end
return {helping, wanted}
