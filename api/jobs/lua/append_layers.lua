#!lua
-- ARGV: NS, id, fence, results for layers (JSON) ...
-- Add an event of each to a held job. 1, or 0 if the caller is not the holder.
local id = ARGV[2]
if not holds(load_job(id), ARGV[3]) then
  return 0
end
for i = 4, #ARGV do
  append_event(id, 'layers', ARGV[i])
end
return 1
