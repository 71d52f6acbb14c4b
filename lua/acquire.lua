-- acquire (A): takes a free key. Tell of a grant (E): of one that was set by a command of its own.
--
-- KEYS   the lock's key
-- ARGV   our value, the TTL in ms
-- Reply  A: 1 set, {value, ms} somebody else's is there
--        E: 1
--
-- Most keys are free, and nobody watches: so a plain SET comes first, and this only for those that were refused, and for what those
-- who watch have to be told (`node/talk.rs`).
-- A script, because a retry of the same request may replace the value of an earlier one, which SET alone can not compare.
-- A value may replace one with the same request and a lower attempt; equal or higher is a refusal. So a late SET of a
-- given-up attempt can take nothing away from a later one, and a request that arrives twice nothing from itself: the second
-- arrival may be one whose answer nobody reads, and whose clean-up would free the lock under its holder. The number of the
-- try, the third part, orders nothing.
-- A is not repeated after a lost reply: it would find its own value there and be refused.

local function parts(value)
  local request, attempt = string.match(value, '^(%x+)%.(%d+)%.%d+%.')
  return request, tonumber(attempt)
end

local function supersedes(value, stored)
  local request, attempt = parts(value)
  if not request then return false end
  local stored_request, stored_attempt = parts(stored)
  return stored_request == request and attempt > stored_attempt
end

local function acquire(key, value, ttl)
  if not call('SET', key, value, 'NX', 'PX', ttl) then
    local stored = read(key)
    if not stored or not supersedes(value, stored) then return other(key, stored) end
    -- Only a release shortens the time of a key.
    call('SET', key, value, 'PX', math.max(tonumber(ttl), call('PTTL', key)))
  end
  tell('granted', key, value, ttl)
  return 1
end

arity.A = 2
operations.A = acquire

arity.E = 2
operations.E = function(key, value, ttl)
  -- In order: what has become of it since then was told.
  if read(key) == value then tell('granted', key, value, ttl) end
  return 1
end
