-- acquire (A): takes the key if nobody has it.
--
-- KEYS   the lock's key
-- ARGV   our value, the TTL in ms
-- Reply  1 set, {value, ms} somebody else's
--
-- A script, because a retry of the same request may replace the value of an earlier try, which SET alone can not compare.
-- A value may replace one with the same request and a lower pair of attempt and try; equal or higher is a refusal. So a
-- late SET of a given-up attempt can take nothing away from a later one.
-- Not repeated after a lost reply: it would find its own value there and be refused.

local function parts(value)
  local request, attempt, try = string.match(value, '^(%x+)%.(%d+)%.(%d+)%.')
  return request, tonumber(attempt), tonumber(try)
end

local function supersedes(value, stored)
  local request, attempt, try = parts(value)
  if not request then return false end
  local stored_request, stored_attempt, stored_try = parts(stored)
  if stored_request ~= request then return false end
  return attempt > stored_attempt or (attempt == stored_attempt and try > stored_try)
end

operations.A = function(key, value, ttl)
  if redis.call('SET', key, value, 'NX', 'PX', ttl) then return 1 end
  local stored = read(key)
  if not stored or not supersedes(value, stored) then return other(key, stored) end
  -- Only a release shortens the time of a key.
  redis.call('SET', key, value, 'PX', math.max(tonumber(ttl), redis.call('PTTL', key)))
  return 1
end
