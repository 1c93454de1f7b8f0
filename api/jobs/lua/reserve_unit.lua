#!lua flags=allow-oom
-- ARGV: NS, id, fence, holder (a seat, or 'leader'), kept unit or '', free bytes of scratch,
--       limits (JSON), unit ...
-- Reserve the first of these units, all ready to be done, that nobody else has. The holder gives up its
-- other units but the kept one. {word, unit or '', doorbells to ring for help}; the word is
--   'go'     it may go on, perhaps without a unit
--   'lost'   the attempt is over, or the seat has lapsed
--   'yield'  the helper should leave its seat: another job is queued
local id, holder, kept = ARGV[2], ARGV[4], ARGV[5]
local job = load_job(id)
if not holds(job, ARGV[3]) then
  return {'lost', '', 0}
end
local at = now()
free_lapsed(id, job, at)
local helps = holder ~= 'leader'
if helps and not redis.call('ZSCORE', key('job', id, 'seats'), holder) then
  return {'lost', '', 0}
end
local units = key('job', id, 'units')
redis.call('HSET', units, holder, kept)

-- Not at once: an idle worker claims a queued job sooner than this one could.
if helps and next_job(cjson.decode(ARGV[7]), tonumber(ARGV[6]), YIELD_SECONDS) then
  return {'yield', '', 0}
end
local taken = {}
for _, held in ipairs(redis.call('HVALS', units)) do
  for unit in string.gmatch(held, '%S+') do
    taken[unit] = true
  end
end
local free = {}
for i = 8, #ARGV do
  if not taken[ARGV[i]] then
    free[#free + 1] = ARGV[i]
  end
end
if free[1] then
  redis.call('HSET', units, holder, kept .. ' ' .. free[1])
end
local unclaimed = math.max(0, #free - 1)
local wanted = math.min(unclaimed, free_seats(id, job))
local bells = 0
if wanted > 0 then
  set_fields(id, {unclaimed = string.format('%d', unclaimed)})
  if redis.call('ZADD', key('help'), 'NX', seconds(at), id) == 1 then
    bells = wanted
  end
else
  redis.call('ZREM', key('help'), id)
end
return {'go', free[1] or '', bells}
