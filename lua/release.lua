-- release (R): deletes the key if it holds our value.
--
-- KEYS   the lock's key
-- ARGV   our value
-- Reply  1 deleted, 0 not ours
--
-- A script, because between a GET and a DEL the key may become somebody else's.
-- Safe to repeat: the value is never used again.

arity.R = 1
operations.R = function(key, value)
  if read(key) ~= value then return 0 end
  call('DEL', key)
  return 1
end
