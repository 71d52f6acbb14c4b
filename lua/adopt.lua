-- adopt (D): gives the key a new value if it holds the old one: the same lease, as another proxy knows it.
--
-- KEYS   the lock's key
-- ARGV   the new value, the TTL in ms, the old value
-- Reply  {ms} the old one was there, with the time it had, or a new one of a lower attempt to adopt it; 0 no such key;
--        {value, ms} somebody else's
--
-- A key that is missing stays so: it does not count for the adoption, and gets the new value when that has succeeded.
-- A script, because between a GET and a SET the key may become somebody else's.
-- Never shortens the time of a key. Not repeated after a lost reply: it would find its own value there and be refused.

arity.D = 3
operations.D = function(key, value, ttl, old)
  local stored = read(key)
  if stored == nil then return 0 end
  if stored ~= old and not (stored and supersedes(value, stored)) then return other(key, stored) end
  local left = call('PTTL', key)
  call('SET', key, value, 'PX', math.max(tonumber(ttl), left))
  tell('handed_over', key, value, ttl)
  return {left}
end
