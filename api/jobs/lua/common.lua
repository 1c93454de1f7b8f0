-- Shared by every verb: put in front of each script by ledger.py.
--
-- Keys (NS is the namespace, ARGV[1] of every script):
--   NS:job:ID                        hash    the job; fields as in record.py, JSON for dictionaries,
--                                            '' for None, times in unix seconds; plus `position`,
--                                            label_index (JSON list), deadline_seconds;
--                                            declined: '1' once free workers have left it in the
--                                            queue for long;
--                                            claim_nonce, release_nonce: the call last heard;
--                                            unclaimed: units that were ready and nobody's at the
--                                            last claim of one; help_failures in this attempt
--   NS:job:ID:events                 stream  capped; fields at, type, data (JSON)
--   NS:job:ID:logs                   stream  capped; field line (JSON)
--   NS:job:ID:seats                  zset    while it is held: seat of a worker that helps -> time at
--                                            which it lapses
--   NS:job:ID:units                  hash    while it is held: seat, or 'leader' -> its units: one that
--                                            is being stored, one that is being computed
--   NS:help                          zset    ID -> time at which help was last rung for, of held jobs
--                                            with units and seats that nobody has
--   NS:leases                        zset    ID -> time at which the lease expires
--   NS:deadlines                     zset    ID -> deadline_at of jobs that are not over
--   NS:ended                         zset    ID -> finished_at of jobs that are over
--   NS:queued:PRIORITY               zset    ID -> time at which it was queued, or last re-rung
--   NS:waiting:PRIORITY              zset    ID -> time at which it was queued
--   NS:startable                     zset    the same of those that lack nothing but a worker
--   NS:declined                      zset    ID -> bytes of scratch that it needs, of those that
--                                            free workers have left for long; neither this nor
--                                            `startable` has any that is `blocked`
--   NS:counts                        hash    STATE -> number of jobs
--   NS:totals                        hash    what is counted over all programs; see meters.py
--   NS:tenant:TENANT:all             zset    positions of all jobs, all with score 0
--   NS:tenant:TENANT:state:STATE     zset    positions of the jobs in this state
--   NS:tenant:TENANT:label:KEY=VALUE zset    positions of the jobs with this label
--   NS:tenant:TENANT:blocked         zset    queued jobs that a worker left because the tenant has as
--                                            many running as it may; high priority first, then age
--   NS:tenant:TENANT:reserved        zset    ID -> until when a submission has its place reserved
--   NS:tenant:TENANT:tokens          hash    tokens, at: the rate limit's bucket
--   NS:intact                        string  present once every journalled job is in the ledger
--
-- A position is "CREATED_MICROSECONDS:ID": it sorts by age, is unique, and is the page cursor.
-- Keys are computed here, so this needs one server (or a replica set), not a cluster.
-- TRANSITIONS, HELD, TERMINAL, EVENTS_KEPT, LOGS_KEPT, HELP_FAILURES and YIELD_SECONDS are defined by
-- ledger.py above this line.

local ns = ARGV[1]

local function key(...)
  return table.concat({ns, ...}, ':')
end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- tostring() would keep 14 digits, which is not enough for a unix time in microseconds.
local function seconds(value)
  return string.format('%.6f', value)
end

local function load_job(id)
  local flat = redis.call('HGETALL', key('job', id))
  if #flat == 0 then
    return nil
  end
  local job = {}
  for i = 1, #flat, 2 do
    job[flat[i]] = flat[i + 1]
  end
  return job
end

-- Wakes the dispatcher of webhooks, if somebody wants to hear of this job (see webhooks/outbox).
local function wake(id)
  redis.call('ZADD', key('webhooks'), 'XX', seconds(now()), id)
end

local function append_event(id, kind, data)
  redis.call('XADD', key('job', id, 'events'), 'MAXLEN', '~', EVENTS_KEPT, '*',
    'at', seconds(now()), 'type', kind, 'data', data)
  if kind == 'state' then
    wake(id)
  end
end

local function allowed(from, to)
  return TRANSITIONS[from] ~= nil and TRANSITIONS[from][to] == true
end

-- A worker's verb is honoured only under the newest fence and while the job is held.
local function holds(job, fence)
  return job ~= nil and job.fence == fence and HELD[job.state] == true
end

local function set_fields(id, fields)
  local flat = {}
  for name, value in pairs(fields) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', key('job', id), unpack(flat))
end

-- Note that a job is in this state, or (by -1) no longer is.
local function count(job, state, by)
  redis.call('HINCRBY', key('counts'), state, by)
  local index = key('tenant', job.tenant, 'state', state)
  if by > 0 then
    redis.call('ZADD', index, 0, job.position)
  else
    redis.call('ZREM', index, job.position)
  end
end

-- How many of a tenant's jobs are in the states that are keys of `states`.
local function tenant_jobs(tenant, states)
  local found = 0
  for state in pairs(states) do
    found = found + redis.call('ZCARD', key('tenant', tenant, 'state', state))
  end
  return found
end

local function line_up(id, job, at)
  redis.call('ZADD', key('queued', job.priority), seconds(at), id)
  redis.call('ZADD', key('waiting', job.priority), seconds(at), id)
  redis.call('ZADD', key('startable'), seconds(at), id)
  redis.call('ZREM', key('tenant', job.tenant, 'reserved'), id)
end

-- Helpers no longer make room for this queued job.
local function withdraw(id)
  redis.call('ZREM', key('startable'), id)
  redis.call('ZREM', key('declined'), id)
end

-- They do again: those with scratch for it, if free workers have declined it.
local function offer(id, job)
  withdraw(id)
  if job.declined == '1' then
    redis.call('ZADD', key('declined'), job.scratch_bytes or '0', id)
  else
    redis.call('ZADD', key('startable'), redis.call('ZSCORE', key('waiting', job.priority), id), id)
  end
end

local function leave_line(id, job)
  withdraw(id)
  redis.call('ZREM', key('queued', job.priority), id)
  redis.call('ZREM', key('waiting', job.priority), id)
  redis.call('ZREM', key('tenant', job.tenant, 'blocked'), id)
end

-- Write state `to` with `fields`, keep every index in step, and append the event.
-- reason: why, for the event; '' for none.
local function enter(id, job, to, fields, reason)
  local at = now()
  count(job, job.state, -1)
  count(job, to, 1)
  if to == 'queued' then
    line_up(id, job, at)
  else
    leave_line(id, job)
  end
  if not HELD[to] then
    redis.call('ZREM', key('leases'), id)
    -- Helpers of this attempt have no part in another one.
    redis.call('DEL', key('job', id, 'seats'), key('job', id, 'units'))
    redis.call('ZREM', key('help'), id)
    fields.workers = '0'
    fields.lease_owner = ''
    fields.lease_expires_at = ''
    fields.stop_requested = ''
  end
  if TERMINAL[to] then
    fields.finished_at = fields.finished_at or seconds(at)
    redis.call('ZADD', key('ended'), fields.finished_at, id)
    redis.call('ZREM', key('deadlines'), id)
  else
    redis.call('ZREM', key('ended'), id)
  end
  fields.state = to
  fields.declined = ''
  fields.updated_at = seconds(at)
  fields.revision = string.format('%d', tonumber(job.revision) + 1)
  set_fields(id, fields)
  local event = {
    state = to,
    run = tonumber(fields.run or job.run or '1'),
    attempt = tonumber(fields.attempt or job.attempt),
  }
  if reason ~= '' then
    event.reason = reason
  end
  if fields.error and fields.error ~= '' then
    event.error = cjson.decode(fields.error)
  end
  append_event(id, 'state', cjson.encode(event))
  for name, value in pairs(fields) do
    job[name] = value
  end
end

-- `enter` for a transition of the table; false, with nothing changed, for any other.
local function move(id, job, to, fields, reason)
  if not allowed(job.state, to) then
    return false
  end
  enter(id, job, to, fields, reason)
  return true
end

-- Note how many workers serve a held job now.
local function count_workers(id, job)
  local workers = 1 + redis.call('ZCARD', key('job', id, 'seats'))
  local fields = {
    workers = string.format('%d', workers),
    updated_at = seconds(now()),
    revision = string.format('%d', tonumber(job.revision) + 1),
  }
  set_fields(id, fields)
  append_event(id, 'workers', cjson.encode({workers = workers}))
  for name, value in pairs(fields) do
    job[name] = value
  end
end

local function leave_seat(id, job, seat)
  redis.call('HDEL', key('job', id, 'units'), seat)
  if redis.call('ZREM', key('job', id, 'seats'), seat) == 1 then
    count_workers(id, job)
  end
end

-- Free the seats of a held job that have lapsed, and what they had claimed.
local function free_lapsed(id, job, at)
  local lapsed = redis.call('ZRANGEBYSCORE', key('job', id, 'seats'), '-inf', seconds(at))
  for _, seat in ipairs(lapsed) do
    leave_seat(id, job, seat)
  end
end

-- How many more workers may help with a held job; none after so many failures of helpers.
local function free_seats(id, job)
  if tonumber(job.help_failures or '0') >= HELP_FAILURES then
    return 0
  end
  local most = tonumber(job.max_workers or '1') - 1
  return math.max(0, most - redis.call('ZCARD', key('job', id, 'seats')))
end
