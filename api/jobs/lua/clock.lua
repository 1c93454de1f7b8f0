-- Unix seconds by Redis' own clock, the only one that all processes share. In front of common.lua in
-- every script; tests put a clock that they can set in its place.
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end
