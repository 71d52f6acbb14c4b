-- renew (N): lets the TTL count from now if the key holds our value.
--
-- KEYS   the lock's key
-- ARGV   our value, the TTL in ms
-- Reply  {ms} ours, with the time it had before; 0 no such key; {value, ms} somebody else's
--
-- A script, because between a GET and a PEXPIRE the key may become somebody else's.
-- Never shortens the time of a key. Safe to repeat.

arity.N = 2
operations.N = function(key, value, ttl)
  local stored = read(key)
  if stored == nil then return 0 end
  if stored ~= value then return other(key, stored) end
  local left = call('PTTL', key)
  if left >= 0 and left < tonumber(ttl) then call('PEXPIRE', key, ttl) end
  return {left}
end
