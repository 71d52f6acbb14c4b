-- events: tells those who watch what becomes of a lock; the other files call it.
--
-- KEYS   none of its own
-- ARGV   none of its own
-- Reply  none: whoever is not told learns of it when it looks
--
-- While somebody listens to `redlockd:watchers`, what becomes of a key is published on `redlockd:watch:{n}`, n from 0 to 255 by
-- its bytes: what, an id of the lease (a hash of its secret), its time in ms, the owner's label and the key, a line each. Whoever
-- listens to any `redlockd:wake:{n}` listens to `redlockd:waiters` too. Both are asked once a call: cheaper than to publish for nobody.
-- In the script, because what is told has to be in the order in which it happened. Repeated, it is told again.

local watched, awaited

local function ask_who_listens()
  local told = try('PUBSUB', 'NUMSUB', 'redlockd:watchers', 'redlockd:waiters')
  watched = type(told[2]) == 'number' and told[2] > 0
  -- Whoever may not ask tells.
  awaited = type(told[4]) ~= 'number' or told[4] > 0
end

local function is_watched()
  if watched == nil then ask_who_listens() end
  return watched
end

local function is_awaited()
  if awaited == nil then ask_who_listens() end
  return awaited
end

local function watch_channel(key)
  local sum = 0
  for at = 1, #key do sum = (sum * 31 + string.byte(key, at)) % 256 end
  return 'redlockd:watch:' .. sum
end

local function tell(what, key, value, ms)
  if not is_watched() then return end
  local id, label = string.sub(redis.sha1hex(value), 1, 16), string.match(value, ';(.*)$') or ''
  try('PUBLISH', watch_channel(key), table.concat({what, id, ms, label, key}, '\n'))
end
