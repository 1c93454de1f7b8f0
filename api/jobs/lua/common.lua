-- Shared by every verb: ledger.py puts it in front of each script, below the flags.
--
-- Keys (NS is the namespace, ARGV[1] of every script):
--   NS:job:ID                        hash    the job; fields as in record.py, JSON for dictionaries,
--                                            '' for None, times in unix seconds; plus `position`,
--                                            deadline_seconds;
--                                            kept_bytes: what is counted for it in NS:kept;
--                                            declined: '1' once its error says that free workers
--                                            have too little space; lined_up_at: when this run was
--                                            queued first, which is its place in its tenant's line;
--                                            output: where it publishes, ending in '/';
--                                            claim_nonce, release_nonce: of the last such call;
--                                            unclaimed: units that were ready and free at the last
--                                            reservation; help_failures: in this attempt
--   NS:job:ID:events                 stream  capped; fields at, type, data (JSON)
--   NS:job:ID:logs                   stream  capped; field line (JSON)
--   NS:job:ID:seats                  zset    while it is held: seat of a helper -> time at which it
--                                            lapses
--   NS:job:ID:units                  hash    while it is held: seat, or 'leader' -> its units: one that
--                                            is being stored, one that is being computed
--   NS:help                          zset    ID -> time at which help was last rung for, of held jobs
--                                            with free units and seats
--   NS:leases                        zset    ID -> time at which the lease expires
--   NS:deadlines                     zset    ID -> deadline_at of jobs that have not ended
--   NS:ended                         zset    ID -> finished_at of jobs that have ended
--   NS:queued:PRIORITY               zset    ID -> time at which it was queued, or rung for again
--   NS:waiting:PRIORITY              zset    ID -> time at which it was queued
--   NS:resting                       zset    ID -> time at which it was queued, of queued jobs that
--                                            no worker may claim until a reconciler ends their rest
--   NS:turns                         zset    tenants with jobs in line -> `served`
--   NS:served                        hash    TENANT -> when a worker last claimed a job of it
--   NS:claimed:NONCE                 string  ID of the job that this call of `claim` claimed; expires
--   NS:counts                        hash    STATE -> number of jobs
--   NS:kept                          hash    TENANT -> bytes of memory that its jobs here take
--   NS:totals                        hash    metrics of workers and reconcilers; see meters.py
--   NS:outputs                       zset    "OUTPUT\nID" of jobs that have not ended, and of
--                                            submissions in progress, all with score 0
--   NS:outputs_reserved              zset    "OUTPUT\nID" -> when the reservation of a submission ends
--   NS:tenant:TENANT:all             zset    positions of all jobs, all with score 0
--   NS:tenant:TENANT:state:STATE     zset    positions of the jobs in this state
--   NS:tenant:TENANT:line            zset    its queued jobs that a worker may claim: high priority
--                                            first, then age (see `stand_in_line`)
--   NS:tenant:TENANT:reserved        zset    ID -> when the reservation of a submission ends
--   NS:tenant:TENANT:tokens          hash    tokens, at: the rate limit's bucket
--   NS:role:ROLE                     string  which process has it; expires
--   NS:workers                       zset    worker -> when it was last seen
--   NS:worker:WORKER                 hash    started_at, seen_at, and what it says of itself: host, pool,
--                                            version, rates (JSON), read_bytes_per_second,
--                                            device, threads, job_id, part, phase, unit;
--                                            busy_at: when it last spoke of its job; expires
--   NS:classes                       hash    JSON of a class of workers (pool, device, threads) -> the rates
--                                            that one of them has measured
--   NS:classes_seen                  zset    the same -> when a worker of it was last seen
--   NS:probe                         string  written by readiness probes; expires
--   NS:intact                        string  present once every journalled job is in the ledger
--
-- A position is "CREATED_MICROSECONDS:ID": it sorts by age, is unique, and is the page cursor.
-- Keys are computed here, so this needs one server (or a replica set), not a cluster.
-- TRANSITIONS, HELD, TERMINAL, EVENTS_KEPT, LOGS_KEPT, HELP_FAILURES and YIELD_SECONDS are defined by
-- ledger.py above this line, and now() by clock.lua.

local ns = ARGV[1]

local function key(...)
  return table.concat({ns, ...}, ':')
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

-- Schedules the webhooks of this job, if it has subscriptions (see webhooks/outbox).
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

-- A verb of a worker counts only under the newest fence and while the job is held.
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

-- A job's place is before all of lower priority, then by age: exact to some microseconds.
local RANK_STEP = 1e10
local RANKS = {high = 0, normal = RANK_STEP, low = 2 * RANK_STEP}

local function stand_in_line(id, job)
  local place = RANKS[job.priority] + tonumber(job.lined_up_at)
  redis.call('ZADD', key('tenant', job.tenant, 'line'), seconds(place), id)
  local served_at = redis.call('HGET', key('served'), job.tenant) or '0'
  redis.call('ZADD', key('turns'), served_at, job.tenant)
end

-- Queue a job. rests: whether no worker may claim it until a reconciler ends its rest.
local function line_up(id, job, at, rests)
  redis.call('ZADD', key('queued', job.priority), seconds(at), id)
  redis.call('ZADD', key('waiting', job.priority), seconds(at), id)
  redis.call('ZREM', key('tenant', job.tenant, 'reserved'), id)
  if rests then
    redis.call('ZADD', key('resting'), seconds(at), id)
  else
    stand_in_line(id, job)
  end
end

local function leave_line(id, job)
  redis.call('ZREM', key('queued', job.priority), id)
  redis.call('ZREM', key('waiting', job.priority), id)
  redis.call('ZREM', key('resting'), id)
  local line = key('tenant', job.tenant, 'line')
  if redis.call('ZREM', line, id) == 1 and redis.call('ZCARD', line) == 0 then
    redis.call('ZREM', key('turns'), job.tenant)
  end
end

-- How many of a tenant's jobs workers hold, and how many workers serve them, helpers included.
local function served(tenant)
  local jobs, workers = 0, 0
  for state in pairs(HELD) do
    local index = key('tenant', tenant, 'state', state)
    for _, position in ipairs(redis.call('ZRANGE', index, 0, -1)) do
      local found = redis.call('HGET', key('job', string.match(position, ':(.*)')), 'workers')
      jobs = jobs + 1
      workers = workers + math.max(1, tonumber(found or '1') or 1)
    end
  end
  return jobs, workers
end

-- Tenants with jobs in line that may have another one running, in the order of their turns: by the
-- number of workers that serve them, then by the time since they were last served. Also whether other
-- tenants are at their limit. limits: {default, tenants}, jobs that a tenant may have running, negative
-- for any number.
local function tenants_in_turn(limits)
  local found, blocked = {}, false
  for order, tenant in ipairs(redis.call('ZRANGE', key('turns'), 0, -1)) do
    local most = limits.tenants[tenant] or limits.default
    local jobs, workers = served(tenant)
    if most >= 0 and jobs >= most then
      blocked = true
    else
      found[#found + 1] = {tenant = tenant, workers = workers, order = order}
    end
  end
  table.sort(found, function(a, b)
    if a.workers ~= b.workers then
      return a.workers < b.workers
    end
    return a.order < b.order
  end)
  return found, blocked
end

-- Where a tenant's job stands that has `before` jobs ahead of it in the tenant's line; false while it rests.
-- `ahead`: jobs that workers would claim before it if none came, ended or changed meanwhile: then tenants
-- are served in turn, each time the one with the fewest workers, then the one served longest ago (see
-- `tenants_in_turn`). `workers`: those seen within so many seconds.
local function place_in_queue(tenant, before, limits, within)
  local seen = redis.call('ZCOUNT', key('workers'), seconds(now() - within), '+inf')
  if not before then
    return {waits_for = 'rest', workers = seen}
  end
  local function turn_of(name, order)
    local most = limits.tenants[name] or limits.default
    local jobs, workers = served(name)
    return {
      order = order,
      workers = workers,
      waiting = redis.call('ZCARD', key('tenant', name, 'line')),
      room = most < 0 and math.huge or math.max(0, most - jobs),
    }
  end
  local turns = {}
  for order, name in ipairs(redis.call('ZRANGE', key('turns'), 0, -1)) do
    turns[name] = turn_of(name, order)
  end
  local own = turns[tenant]
  if own == nil then -- It has no job in line yet. It would stand where `stand_in_line` put it.
    local served_at, order = tonumber(redis.call('HGET', key('served'), tenant) or '0'), 0.5
    for name in pairs(turns) do
      local other = tonumber(redis.call('ZSCORE', key('turns'), name))
      if other < served_at or (other == served_at and name < tenant) then
        order = order + 1
      end
    end
    own = turn_of(tenant, order)
  end
  local ahead = before
  for name, other in pairs(turns) do
    if name ~= tenant then
      -- Of two with as many workers, the one goes first that came to this number first.
      local first = other.workers > own.workers
        or (other.workers == own.workers and other.order < own.order)
      local turn = own.workers + before - other.workers + (first and 1 or 0)
      ahead = ahead + math.max(0, math.min(turn, other.waiting, other.room))
    end
  end
  return {
    waits_for = own.room > before and 'turn' or 'limit', ahead = ahead, workers = seen,
  }
end

local LINE_STEP = 100

-- The first job in a tenant's line that needs at most `free_bytes` of scratch, or nil.
-- seconds_ago: only jobs queued at least this long ago. left: gets jobs that were skipped for their
-- size.
local function first_in_line(tenant, free_bytes, seconds_ago, left)
  local line, latest = key('tenant', tenant, 'line'), now() - seconds_ago
  local from = 0
  while true do
    local found = redis.call('ZRANGE', line, from, from + LINE_STEP - 1, 'WITHSCORES')
    for i = 1, #found, 2 do
      if tonumber(found[i + 1]) % RANK_STEP <= latest then
        local needed = redis.call('HGET', key('job', found[i]), 'scratch_bytes')
        if tonumber(needed or '0') <= free_bytes then
          return found[i]
        end
        left[#left + 1] = found[i]
      end
    end
    if #found < 2 * LINE_STEP then
      return nil
    end
    from = from + LINE_STEP
  end
end

-- The job that a worker should claim next, or nil. Also why there is none, in the words of `claim`, and
-- the jobs that were skipped for their size.
local function next_job(limits, free_bytes, seconds_ago)
  local tenants, blocked = tenants_in_turn(limits)
  local left = {}
  for _, entry in ipairs(tenants) do
    local id = first_in_line(entry.tenant, free_bytes, seconds_ago, left)
    if id then
      return id, '', left
    end
  end
  return nil, (#left > 0 and 'no_room') or (blocked and 'blocked') or 'nothing', left
end

-- No URI holds a line break.
local function output_entry(output, id)
  return output .. '\n' .. id
end

-- Note that no other submission may have this output. A job that is in the journal is never refused, so
-- after a loss of Redis two jobs may have one.
local function hold_output(id, job)
  if (job.output or '') ~= '' then
    local entry = output_entry(job.output, id)
    redis.call('ZADD', key('outputs'), 0, entry)
    redis.call('ZREM', key('outputs_reserved'), entry)
  end
end

local function free_output(id, output)
  redis.call('ZREM', key('outputs'), output_entry(output, id))
  redis.call('ZREM', key('outputs_reserved'), output_entry(output, id))
end

-- Another job than `id` whose output is this one, contains it or is inside it; nil if there is none.
local function output_holder(output, id, at)
  local function first_below(place)
    for _, entry in ipairs(redis.call('ZRANGEBYLEX', key('outputs'), '[' .. place, '[' .. place .. '\255')) do
      local other = string.match(entry, '\n(.*)$')
      local lapses = redis.call('ZSCORE', key('outputs_reserved'), entry)
      if other ~= id and not (lapses and tonumber(lapses) <= at) then
        return other
      end
    end
  end
  for slash in string.gmatch(output, '()/') do
    local other = first_below(output_entry(string.sub(output, 1, slash), ''))
    if other then
      return other
    end
  end
  return first_below(output)
end

-- About what its places in the indexes take.
local INDEX_BYTES = 600

-- Count the present size of a job for its tenant.
local function weigh(id, job)
  local bytes = INDEX_BYTES
  for _, part in ipairs({key('job', id), key('job', id, 'events'), key('job', id, 'logs')}) do
    bytes = bytes + (redis.call('MEMORY', 'USAGE', part, 'SAMPLES', 0) or 0)
  end
  redis.call('HINCRBY', key('kept'), job.tenant, bytes - tonumber(job.kept_bytes or '0'))
  job.kept_bytes = string.format('%d', bytes)
  redis.call('HSET', key('job', id), 'kept_bytes', job.kept_bytes)
end

-- Write state `to` with `fields`, keep every index in step, and append the event.
-- reason: why, for the event; '' for none. rests: see `line_up`.
local function enter(id, job, to, fields, reason, rests)
  local at = now()
  count(job, job.state, -1)
  count(job, to, 1)
  if to == 'queued' then
    -- A job that was given back keeps its place.
    if (fields.lined_up_at or job.lined_up_at or '') == '' then
      fields.lined_up_at = seconds(at)
    end
    job.lined_up_at = fields.lined_up_at or job.lined_up_at
    line_up(id, job, at, rests)
  else
    leave_line(id, job)
  end
  if not HELD[to] then
    redis.call('ZREM', key('leases'), id)
    -- Seats and reservations belong to this attempt only.
    redis.call('DEL', key('job', id, 'seats'), key('job', id, 'units'))
    redis.call('ZREM', key('help'), id)
    fields.workers = '0'
    fields.lease_owner = ''
    fields.lease_expires_at = ''
    fields.stop_requested = ''
  end
  if TERMINAL[to] then
    free_output(id, job.output or '')
    fields.finished_at = fields.finished_at or seconds(at)
    redis.call('ZADD', key('ended'), fields.finished_at, id)
    redis.call('ZREM', key('deadlines'), id)
  else
    redis.call('ZREM', key('ended'), id)
    hold_output(id, job)
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
  weigh(id, job)
end

-- `enter` for a transition of the table; false, with nothing changed, for any other.
local function move(id, job, to, fields, reason, rests)
  if not allowed(job.state, to) then
    return false
  end
  enter(id, job, to, fields, reason, rests)
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

-- Free the seats of a held job that have lapsed, and their units.
local function free_lapsed(id, job, at)
  local lapsed = redis.call('ZRANGEBYSCORE', key('job', id, 'seats'), '-inf', seconds(at))
  for _, seat in ipairs(lapsed) do
    leave_seat(id, job, seat)
  end
end

-- How many more workers may help with a held job; none after HELP_FAILURES failures.
local function free_seats(id, job)
  if tonumber(job.help_failures or '0') >= HELP_FAILURES then
    return 0
  end
  local most = tonumber(job.max_workers or '1') - 1
  return math.max(0, most - redis.call('ZCARD', key('job', id, 'seats')))
end
