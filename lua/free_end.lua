-- The second half of free.lua: tells those who watch, and those who wait for these locks.

-- The channels to which somebody listens, by their numbers; all of them, if this user may not ask.
local active
if waiters > 0 then
  local names = try('PUBSUB', 'CHANNELS', 'redlockd:wake:*')
  if not names.err then
    active = {}
    for i = 1, #names do active[string.sub(names[i], 15)] = true end
  end
end
local quiet = deleted == count
for i = 1, count do
  if reply[i] == 1 then
    if watchers > 0 then tell('released', keys[i], args[i + 2], 0) end
    if waiters > 0 and i > silent and (not active or active[args[2 + count + i] or tostring(channel(keys[i]))]) then
      local heard = wake(keys[i], args[i + 2], sender)
      reply[i] = heard < 0 and -1 or heard + 1
      quiet = false
    end
  end
end
return quiet and 1 or reply
