-- events: tells those who watch what becomes of a lock, and those who wait of its release; both scripts have it.
--
-- KEYS   none of its own
-- ARGV   none of its own
-- Reply  none: whoever is not told learns of it when it looks
--
-- While somebody listens to `redlockd:watchers`, what becomes of a key is published on `redlockd:watch:{n}`, n from 0 to 255 by
-- its bytes: what, an id of the lease (a hash of its secret), its time in ms, the owner's label and the key, a line each. Whoever
-- listens to any `redlockd:wake:{n}` listens to `redlockd:waiters` too: there a release is published as `who.id key`, with the id of the
-- lease, for every node tells of it. Whoever misses it looks again after a while, so that a user who may not publish costs others time, and
-- nothing else.
-- In the script, because what is told has to be in the order in which it happened. Repeated, it is told again.

-- By the bytes of a key, the same at every proxy.
local function channel(key)
  local sum = 0
  for at = 1, #key do sum = (sum * 31 + string.byte(key, at)) % 256 end
  return sum
end

-- Which lease: a hash of its secret.
local function lease_id(value)
  return string.sub(redis.sha1hex(value), 1, 16)
end

function tell(event, key, value, ms)
  if listeners() == 0 then return end
  local label = string.match(value, ';(.*)$') or ''
  try('PUBLISH', 'redlockd:watch:' .. channel(key), table.concat({event, lease_id(value), ms, label, key}, '\n'))
end

local function wake_channel(key)
  return 'redlockd:wake:' .. channel(key)
end

-- Those who wait are told of a release: how many they were; -1, if this user may not tell them.
function wake(key, value, sender)
  local heard = try('PUBLISH', wake_channel(key), sender .. '.' .. lease_id(value) .. ' ' .. key)
  return type(heard) == 'number' and heard or -1
end
