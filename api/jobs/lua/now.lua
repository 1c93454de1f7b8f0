#!lua flags=no-writes
-- ARGV: NS
-- The present time in unix seconds, by the clock of all other scripts.
return seconds(now())
