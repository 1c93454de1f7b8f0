#!lua flags=no-writes
-- ARGV: NS, id, limits (as for `claim`), seconds
-- The place of a queued job, as JSON; '' if it is not queued. `ahead`: jobs that workers would claim before
-- it if none came, ended or changed meanwhile: then tenants are served in turn, each time the one with the
-- fewest workers, then the one served longest ago (see `tenants_in_turn`).
local id = ARGV[2]
local job = load_job(id)
if job == nil or job.state ~= 'queued' then
  return ''
end
local limits = cjson.decode(ARGV[3])
local seen = redis.call('ZCOUNT', key('workers'), seconds(now() - tonumber(ARGV[4])), '+inf')
local turns = {}
for order, tenant in ipairs(redis.call('ZRANGE', key('turns'), 0, -1)) do
  local most = limits.tenants[tenant] or limits.default
  local jobs, workers = served(tenant)
  turns[tenant] = {
    order = order,
    workers = workers,
    waiting = redis.call('ZCARD', key('tenant', tenant, 'line')),
    room = most < 0 and math.huge or math.max(0, most - jobs),
  }
end
local before = redis.call('ZRANK', key('tenant', job.tenant, 'line'), id)
if not before then
  return cjson.encode({waits_for = 'rest', workers = seen})
end
local own, ahead = turns[job.tenant], before
for tenant, other in pairs(turns) do
  if tenant ~= job.tenant then
    -- Of two with as many workers, the one goes first that came to this number first.
    local first = other.workers > own.workers
      or (other.workers == own.workers and other.order < own.order)
    local turn = own.workers + before - other.workers + (first and 1 or 0)
    ahead = ahead + math.max(0, math.min(turn, other.waiting, other.room))
  end
end
return cjson.encode({
  waits_for = own.room > before and 'turn' or 'limit', ahead = ahead, workers = seen,
})
