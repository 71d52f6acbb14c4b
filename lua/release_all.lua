-- release and tell (W), all of a run: deletes the keys that hold our values.
--
-- KEYS   the locks' keys
-- ARGV   once: who we are; of each: our value
-- Reply  of each: 1 deleted, and nobody waits for any lock; {heard} deleted, and so many connections were told (-1: this user
--        may not tell anybody); 0 not ours
--
-- What most calls are full of, like acquire_all.lua. All keys are read with one command and deleted with another. Where one of
-- these is refused (a key that this user may not touch), nothing has been changed, and false is returned: then each release goes
-- by itself.
-- A script, because between a GET and a DEL a key may become somebody else's. Safe to repeat: a value is never used again.

local function release_all(at, count)
  local found = try('MGET', unpack(keys, key + 1, key + count))
  if found.err then return false end
  local held = 0
  for i = 1, count do
    if found[i] == args[at + i] then held = held + 1 end
  end
  local deleted = 0
  if held == count then
    deleted = try('DEL', unpack(keys, key + 1, key + count))
  elseif held > 0 then
    local ours = {}
    for i = 1, count do
      if found[i] == args[at + i] then ours[#ours + 1] = keys[key + i] end
    end
    deleted = try('DEL', unpack(ours))
  end
  if type(deleted) ~= 'number' then return false end
  if deleted < held then
    -- One is named twice: what the first has deleted the second does not find.
    local gone = {}
    for i = 1, count do
      local name = keys[key + i]
      if gone[name] then found[i] = false end
      gone[name] = gone[name] or found[i] == args[at + i]
    end
  end
  local watchers, waiters = listeners()
  local silent = watchers == 0 and waiters == 0
  for i = 1, count do
    local entry = 0
    if found[i] == args[at + i] then entry = silent and 1 or seldom().tell_release(keys[key + i], args[at + i], args[at]) end
    reply[key + 2 + i] = entry
  end
  return true
end
