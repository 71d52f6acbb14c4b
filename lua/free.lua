-- free: deletes the keys that hold our values, and tells of it: most of a proxy's releases, all of a call in one step.
--
-- listeners.lua stands before it, and events.lua between its two halves, which most calls do not come to: a call of a script makes all
-- functions on its way, and to make one takes as long as to release a lock.
--
-- KEYS   the locks' keys
-- ARGV   who we are; how many of the keys, the first ones, nobody waits for; our values; once somebody is known to wait, the
--        channels of the other keys, which need not be computed here then
-- Reply  1: all were deleted, and nobody waits for them; else a list, for each key:
--          0   not ours
--          -1  deleted, and this user may not tell those who wait
--          n   deleted, and n - 1 connections were told
--        an error that begins with UNCHANGED: nothing was done; each may still go by itself
--
-- All keys are read with one command and deleted with another. A script, because between a GET and a DEL a key may become
-- somebody else's. Safe to repeat: a value is never used again.

local count, sender, silent = #keys, args[1], tonumber(args[2])

local found = try('MGET', unpack(keys))
-- A key that this user may not touch, for example.
if found.err then return {err = 'UNCHANGED ' .. found.err} end
local ours = {}
for i = 1, count do
  if found[i] == args[i + 2] then ours[#ours + 1] = keys[i] end
end
local deleted = 0
if #ours > 0 then deleted = try('DEL', unpack(ours)) end
if type(deleted) ~= 'number' then return {err = 'UNCHANGED ' .. deleted.err} end
if deleted < #ours then
  -- One is named twice: what the first has deleted the second does not find.
  local gone = {}
  for i = 1, count do
    if gone[keys[i]] then found[i] = false end
    gone[keys[i]] = gone[keys[i]] or found[i] == args[i + 2]
  end
end

local watchers, waiters = listeners()
local nobody = watchers == 0 and waiters == 0
if nobody and deleted == count then return 1 end
local reply = {}
for i = 1, count do
  reply[i] = found[i] == args[i + 2] and 1 or 0
end
if nobody then return reply end

local tell, wake

