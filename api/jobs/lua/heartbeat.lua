#!lua flags=allow-oom
-- ARGV: NS, id, fence, lease seconds, progress (JSON or '')
-- Renew the lease, store the progress, and free helpers' seats that have lapsed: 'continue', 'cancel',
-- 'pause' or 'lost'.
local id, progress = ARGV[2], ARGV[5]
local job = load_job(id)
if not holds(job, ARGV[3]) then
  return 'lost'
end
local at = now()
free_lapsed(id, job, at)
local expires = seconds(at + tonumber(ARGV[4]))
local fields = {lease_expires_at = expires}
if progress ~= '' and progress ~= job.progress then
  fields.progress = progress
  fields.updated_at = seconds(at)
  fields.revision = string.format('%d', tonumber(job.revision) + 1)
  -- An event for each layer, not each heartbeat: a new ETA alone is no event.
  local new = cjson.decode(progress)
  local old = (job.progress or '') ~= '' and cjson.decode(job.progress) or {}
  if new.phase ~= old.phase or new.layers_done ~= old.layers_done then
    append_event(id, 'progress', progress)
  end
end
set_fields(id, fields)
redis.call('ZADD', key('leases'), expires, id)
if (job.stop_requested or '') ~= '' then
  return job.stop_requested
end
return 'continue'
