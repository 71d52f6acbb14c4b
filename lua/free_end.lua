-- The second half of free.lua: tells those who watch, and those who wait for these locks.

-- How many listen to the channel of each key that is told of; nothing, if this user may not ask. (To ask for all channels that
-- somebody listens to is a look at those of everybody else on this server too.)
local listening = {}
if waiters > 0 and silent < count then
  if args[count + 3] then
    listening = try('PUBSUB', 'NUMSUB', unpack(args, count + 3))
  else
    local names = {}
    for i = silent + 1, count do names[i - silent] = wake_channel(keys[i]) end
    listening = try('PUBSUB', 'NUMSUB', unpack(names))
  end
end
local quiet = deleted == count
for i = 1, count do
  if reply[i] == 1 then
    if watchers > 0 then tell('released', keys[i], args[i + 2], 0) end
    if waiters > 0 and i > silent and listening[2 * (i - silent)] ~= 0 then
      local heard = wake(keys[i], args[i + 2], sender)
      reply[i] = heard < 0 and -1 or heard + 1
      quiet = false
    end
  end
end
return quiet and 1 or reply
