-- batch: runs operations that are pending for a node in one call.
--
-- listeners.lua stands before it, and most other files of this directory between its two halves; together they are the script
-- that is loaded into a node for everything but what free.lua and a plain SET do. Each of them adds one operation to `operations`, and
-- how many arguments it has to `arity`.
--
-- KEYS   the marker's key, then one key an operation
-- ARGV   the run_id that the connection was probed with, then for each run of operations of one kind: its letter, how many they
--        are, and the arguments of each
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

-- Of this process: nobody else knows it when the script was sent.
local run_id = args[1]
-- The operations up to `key` have their entries.
local reply, key = call('TIME'), 1

-- What most calls for tokens do without, and once it was made, where it is.
local seldom, made
