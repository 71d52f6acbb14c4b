-- batch: runs all operations that are pending for a node in one call.
--
-- The other files of this directory stand between the two halves of this one; together they are the one script that is
-- loaded into a node. Each of them adds one operation to `operations`, and how many arguments it has to `arity`. Only what
-- most calls are full of stands before seldom.lua: a call of a script runs all of it, and to make a function takes as long as
-- to carry out a part of an operation.
--
-- KEYS   the marker's key, then one key an operation
-- ARGV   the run_id that the connection was probed with, then for each run of operations of one kind: its letter, how many they are, what is
--        common to them (A, W: see there), and the arguments of each
-- Reply  the node's TIME (seconds, microseconds), its marker as it was before the operations (empty: none), then one entry an
--        operation:
--          1            it did what was asked
--          0            nothing of ours is there
--          {ms}         our value is there and had `ms` to live before the operation (-1: no end)
--          {value, ms}  another value is there (nil: a key of another type) with `ms` to live (-1: no end)
--          other        what the fencing counter says: see there
--          a string     the error that this operation met; the others are not touched by it
--
-- A script, because reading and writing have to be one step for every operation, and one call for many operations is
-- what makes them cheap. Safe to repeat if each of its operations is: see there.

local call, try, keys, args = redis.call, redis.pcall, KEYS, ARGV
-- Of this process: nobody else knows it when the script was sent.
local run_id = args[1]
-- The operations up to `key` have their entries.
local reply, key = call('TIME'), 1

-- What the last listeners have told.
local watchers, waiters

-- How many connections want to know what becomes of locks, and of releases only: see events.lua. Asked once a call: cheaper than to
-- publish for nobody.
local function listeners()
  if not watchers then
    local told = try('PUBSUB', 'NUMSUB', 'redlockd:watchers', 'redlockd:waiters')
    -- For watchers who may not be asked for there is nothing to be told; whoever may not ask tells of releases.
    watchers = type(told[2]) == 'number' and told[2] or 0
    waiters = type(told[4]) == 'number' and told[4] or 1
  end
  return watchers, waiters
end

-- What most calls do without, and once it was made, where it is.
local seldom, made
