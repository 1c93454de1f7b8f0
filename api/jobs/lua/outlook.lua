#!lua flags=no-writes
-- ARGV: NS, id, tenant, priority, limits (as for `claim`), seconds, most
-- What decides when a queued job starts, as JSON; with id '' a job that this tenant might submit now. '' if
-- the job is not queued. place: see `place_in_queue`. waiting: predicted times of jobs in line, of any
-- tenant, this one not included, at most so many. held: of jobs that workers hold, at most so many.
local id, tenant, priority, most = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[7])
local job = id ~= '' and load_job(id) or nil
if id ~= '' and (job == nil or job.state ~= 'queued') then
  return ''
end
local before
if job then
  tenant = job.tenant
  before = redis.call('ZRANK', key('tenant', tenant, 'line'), id)
else
  local place = seconds(RANKS[priority] + now())
  before = redis.call('ZCOUNT', key('tenant', tenant, 'line'), '-inf', '(' .. place)
end
local waiting = {}
for rank in pairs(RANKS) do
  for _, other in ipairs(redis.call('ZRANGE', key('queued', rank), 0, most - 1)) do
    if other ~= id and #waiting < most then
      waiting[#waiting + 1] = redis.call('HGET', key('job', other), 'predicted') or ''
    end
  end
end
local held = {}
for _, other in ipairs(redis.call('ZRANGE', key('leases'), 0, most - 1)) do
  local found = redis.call('HMGET', key('job', other), 'predicted', 'progress')
  held[#held + 1] = {found[1] or '', found[2] or ''}
end
return cjson.encode({
  place = place_in_queue(tenant, before, cjson.decode(ARGV[5]), tonumber(ARGV[6])),
  waiting = #waiting > 0 and waiting or nil,
  held = #held > 0 and held or nil,
})
