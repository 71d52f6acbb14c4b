-- release (R), release and tell (W): deletes the key if it holds our value.
--
-- KEYS   the lock's key
-- ARGV   our value; W: the number of the channel, and who we are
-- Reply  R: 1 deleted, 0 not ours
--        W: {heard} deleted, and so many connections were told (-1: this user may not tell anybody); 0 not ours
--
-- W publishes `who key` for the proxies where somebody waits, if there are any: see events.lua. Whoever misses it looks again after a while, so that a user who
-- may not publish costs others time, and nothing else.
-- A script, because between a GET and a DEL the key may become somebody else's.
-- Safe to repeat: the value is never used again.

arity.R = 1
operations.R = function(key, value)
  if read(key) ~= value then return 0 end
  call('DEL', key)
  tell('released', key, value, 0)
  return 1
end

arity.W = 3
operations.W = function(key, value, channel, sender)
  if operations.R(key, value) == 0 then return 0 end
  if not is_awaited() then return {0} end
  local heard = try('PUBLISH', 'redlockd:wake:' .. channel, sender .. ' ' .. key)
  return {type(heard) == 'number' and heard or -1}
end
