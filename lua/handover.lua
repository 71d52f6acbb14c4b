-- hand over (X), hand over and count (Y): gives a lock that is being released to whoever waits for it.
--
-- KEYS   the lock's key
-- ARGV   the waiter's value, its TTL in ms, the value that is released; Y: the bucket before the last
-- Reply  {1} the released value was there, and the waiter's is now; {2} nothing was there, and the waiter's is now
--        Y: {1 or 2, number} where the bucket of the quorum counter stands now
--        {3 or 4, error} as 1 or 2, but the waiter's could not be set (a full server, no counters), and nothing is there
--        {value, ms} somebody else's is there
--
-- It carries the release: where the waiter's value can not be set, the released one is gone all the same.
-- A script, because between the release and the grant nobody may take the key.
-- Not repeated after a lost reply: it becomes a release of the old value.

local function hand_over(key, value, ttl, old, set)
  local stored = read(key)
  if stored ~= nil and stored ~= old then return other(key, stored) end
  local ok, number = pcall(set)
  if not ok then
    if stored then operations.R(key, old) end
    return {stored and 3 or 4, type(number) == 'table' and number.err or tostring(number)}
  end
  tell('handed_over', key, value, ttl)
  return {stored and 1 or 2, number}
end

arity.X = 3
operations.X = function(key, value, ttl, old)
  return hand_over(key, value, ttl, old, function() call('SET', key, value, 'PX', ttl) end)
end

arity.Y = 4
operations.Y = function(key, value, ttl, bucket, old)
  return hand_over(key, value, ttl, old, function()
    -- First: a node that is not brought up grants nothing.
    local number = count(bucket, base())
    call('SET', key, value, 'PX', ttl)
    return number
  end)
end
