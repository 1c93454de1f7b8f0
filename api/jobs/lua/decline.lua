#!lua
-- ARGV: NS, id, error (JSON), seconds
-- Note on a job that has been queued this long why a worker does not claim it. 1, or 0 if it was queued
-- later or has this note already: several workers make one note.
local id, failure = ARGV[2], ARGV[3]
local job = load_job(id)
if job == nil or job.state ~= 'queued' or job.error == failure then
  return 0
end
local since = redis.call('ZSCORE', key('waiting', job.priority), id)
local at = now()
if not since or at - tonumber(since) < tonumber(ARGV[4]) then
  return 0
end
set_fields(id, {
  error = failure,
  declined = '1',
  updated_at = seconds(at),
  revision = string.format('%d', tonumber(job.revision) + 1),
})
append_event(id, 'state', cjson.encode({
  state = 'queued', run = tonumber(job.run or '1'), attempt = tonumber(job.attempt),
  reason = 'declined', error = cjson.decode(failure),
}))
return 1
