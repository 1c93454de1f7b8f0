#!lua flags=no-writes
-- ARGV: NS, output
-- A job that has this output, one that contains it or one inside it; '' if there is none.
return output_holder(ARGV[2], '', now()) or ''
