#!lua flags=allow-oom
-- ARGV: NS, id, output
-- Give up the reservation of an output. One that a job has by now stays.
local entry = output_entry(ARGV[3], ARGV[2])
if redis.call('ZSCORE', key('outputs_reserved'), entry) then
  free_output(ARGV[2], ARGV[3])
end
return 1
