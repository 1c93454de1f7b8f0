#!lua flags=no-writes
-- ARGV: NS, limits (JSON: default, tenants; each a list of jobs and bytes, negative for any number),
--       share of the limits to come down to, limit
-- Ids of ended jobs to archive: the oldest of each tenant that is over its share. Not those with
-- webhooks to send.
local limits, share, limit = cjson.decode(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found = {}

local function over(most, has)
  return most < 0 and 0 or has - share * most
end

local function oldest_ended(tenant)
  local positions = {}
  for state in pairs(TERMINAL) do
    local index = key('tenant', tenant, 'state', state)
    for _, position in ipairs(redis.call('ZRANGE', index, 0, limit - 1)) do
      positions[#positions + 1] = position
    end
  end
  table.sort(positions)
  return positions
end

local function has_sent_webhooks(id)
  local due = redis.call('ZSCORE', key('webhooks'), id)
  return not due or due == 'inf'
end

local kept = redis.call('HGETALL', key('kept'))
for i = 1, #kept, 2 do
  local tenant = kept[i]
  local most = limits.tenants[tenant] or limits.default
  local jobs = over(most[1], redis.call('ZCARD', key('tenant', tenant, 'all')))
  local bytes = over(most[2], tonumber(kept[i + 1]))
  if jobs > 0 or bytes > 0 then
    for _, position in ipairs(oldest_ended(tenant)) do
      if (jobs <= 0 and bytes <= 0) or #found >= limit then
        break
      end
      local id = string.match(position, ':(.*)')
      if has_sent_webhooks(id) then
        found[#found + 1] = id
        jobs = jobs - 1
        bytes = bytes - tonumber(redis.call('HGET', key('job', id), 'kept_bytes') or '0')
      end
    end
  end
end
return found
