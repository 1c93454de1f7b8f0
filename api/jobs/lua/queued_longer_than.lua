#!lua flags=allow-oom
-- ARGV: NS, seconds, limit
-- Ids of jobs that could be claimed and were queued, or returned by this script, this long ago; the
-- longest wait first. Being returned restarts their wait, so that several reconcilers do not all ring
-- for the same job. Each is put in line, which an earlier release may not have done.
local at = now()
local found = {}
for _, priority in ipairs({'high', 'normal', 'low'}) do
  local queued = key('queued', priority)
  local ids = redis.call('ZRANGEBYSCORE', queued, '-inf', seconds(at - tonumber(ARGV[2])),
    'WITHSCORES', 'LIMIT', 0, ARGV[3])
  for i = 1, #ids, 2 do
    if not redis.call('ZSCORE', key('resting'), ids[i]) then
      found[#found + 1] = {id = ids[i], since = tonumber(ids[i + 1]), queued = queued}
    end
  end
end
table.sort(found, function(a, b) return a.since < b.since end)
local returned = {}
for i = 1, math.min(#found, tonumber(ARGV[3])) do
  local id = found[i].id
  local job = load_job(id)
  if job == nil then
    redis.call('ZREM', found[i].queued, id)
  else
    redis.call('ZADD', found[i].queued, 'XX', seconds(at), id)
    if (job.lined_up_at or '') == '' then
      job.lined_up_at = seconds(at)
      set_fields(id, {lined_up_at = job.lined_up_at})
    end
    stand_in_line(id, job)
    returned[#returned + 1] = id
  end
end
return returned
