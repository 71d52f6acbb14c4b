-- inspect (I): what is there, and for how long.
--
-- KEYS   the lock's key
-- Reply  0 nothing, {value, ms} what the key holds (nil: a key of another type)
--
-- A script, because value and time have to be of the same instant. Reads only, so it is safe to repeat.

arity.I = 0
operations.I = function(key)
  local stored = read(key)
  if stored == nil then return 0 end
  return other(key, stored)
end
