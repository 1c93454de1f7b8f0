#!lua
-- ARGV: NS, id, fence, line (JSON) ...
-- Add lines to the log of a held job. 1, or 0 if the caller is not the holder.
local id = ARGV[2]
if not holds(load_job(id), ARGV[3]) then
  return 0
end
for i = 4, #ARGV do
  redis.call('XADD', key('job', id, 'logs'), 'MAXLEN', '~', LOGS_KEPT, '*', 'line', ARGV[i])
end
return 1
