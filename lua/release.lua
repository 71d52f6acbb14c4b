-- release (R), release and tell (W): deletes the key if it holds our value.
--
-- KEYS   the lock's key
-- ARGV   our value; of W, who we are
-- Reply  R: 1 deleted, 0 not ours
--        W: {heard} deleted, and so many connections were told (-1: this user may not tell anybody); 0 not ours
--
-- Most releases go by free.lua; these are for those that stand behind something else in their batch, or could not go there.
-- A script, because between a GET and a DEL the key may become somebody else's.
-- Safe to repeat: the value is never used again.

local function release(key, value)
  if read(key) ~= value then return false end
  call('DEL', key)
  return true
end

arity.R = 1
operations.R = function(key, value)
  if not release(key, value) then return 0 end
  tell('released', key, value, 0)
  return 1
end

arity.W = 2
operations.W = function(key, value, sender)
  if not release(key, value) then return 0 end
  tell('released', key, value, 0)
  local _, waiters = listeners()
  return {waiters > 0 and wake(key, value, sender) or 0}
end
