#!lua flags=no-writes
-- ARGV: NS, seconds
-- The workers seen within so many seconds, by name: the hash of each as a list of names and values, all
-- as one JSON text. A job that its worker has not spoken of for so long is left out.
local at, found = now(), {}
local earliest = at - tonumber(ARGV[2])
local names = redis.call('ZRANGEBYSCORE', key('workers'), seconds(earliest), '+inf')
table.sort(names)
for _, name in ipairs(names) do
  local about = redis.call('HGETALL', key('worker', name))
  if #about > 0 then
    local busy = tonumber(redis.call('HGET', key('worker', name), 'busy_at') or '0') >= earliest
    found[#found + 1] = {name, busy, about}
  end
end
return #found > 0 and cjson.encode(found) or '[]'
