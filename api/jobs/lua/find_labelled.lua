#!lua flags=no-writes
-- ARGV: NS, tenant, index ('all' or 'state:STATE'), newest and oldest position (as ZREVRANGEBYLEX has
--       them), most jobs to find, most jobs to read, label (JSON list of name and value)
-- {position to continue below or '', positions of jobs with the label, the newest first}
local most, looks = tonumber(ARGV[6]), tonumber(ARGV[7])
local name, value = unpack(cjson.decode(ARGV[8]))
local positions = redis.call('ZREVRANGEBYLEX', key('tenant', ARGV[2], ARGV[3]), ARGV[4], ARGV[5],
  'LIMIT', 0, looks + 1)
local found = {''}
for i = 1, math.min(#positions, looks) do
  local id = string.match(positions[i], ':(.*)')
  local labels = redis.call('HGET', key('job', id), 'labels') or ''
  if labels ~= '' and cjson.decode(labels)[name] == value then
    found[#found + 1] = positions[i]
  end
  if #found > most or i == looks then
    found[1] = i < #positions and positions[i] or ''
    break
  end
end
return found
