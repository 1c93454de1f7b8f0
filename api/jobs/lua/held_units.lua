#!lua flags=allow-oom
-- ARGV: NS, id, fence, holder (a seat, or 'leader')
-- The units that workers of this attempt have reserved: {word, unit ...}; the word as of `reserve_unit`, but for
-- 'yield'. Nothing changes, but that units of seats that have lapsed are free.
local id, holder = ARGV[2], ARGV[4]
local job = load_job(id)
if not holds(job, ARGV[3]) then
  return {'lost'}
end
free_lapsed(id, job, now())
if holder ~= 'leader' and not redis.call('ZSCORE', key('job', id, 'seats'), holder) then
  return {'lost'}
end
local found = {'go'}
for _, held in ipairs(redis.call('HVALS', key('job', id, 'units'))) do
  for unit in string.gmatch(held, '%S+') do
    found[#found + 1] = unit
  end
end
return found
