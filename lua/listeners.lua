-- listeners: how many connections want to know what becomes of locks; both scripts begin with it.
--
-- KEYS   none of its own
-- ARGV   none of its own
-- Reply  none of its own
--
-- Asked once a call: cheaper than to publish for nobody. In the script, because whoever subscribes before something happens is told of
-- it, and whoever does later sees it when it looks. Reads only, so it is safe to repeat.

local call, try, keys, args = redis.call, redis.pcall, KEYS, ARGV

-- What was told last.
local watchers, waiters

-- Of all that becomes of locks, and of releases only: see events.lua.
local function listeners()
  if not watchers then
    local told = try('PUBSUB', 'NUMSUB', 'redlockd:watchers', 'redlockd:waiters')
    -- For watchers who may not be asked for there is nothing to be told; whoever may not ask tells of releases.
    watchers = type(told[2]) == 'number' and told[2] or 0
    waiters = type(told[4]) == 'number' and told[4] or 1
  end
  return watchers, waiters
end

