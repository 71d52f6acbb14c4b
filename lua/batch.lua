-- batch: runs all operations that are pending for a node in one call.
--
-- The other files of this directory stand between the two halves of this one; together they are the one script that is
-- loaded into a node. Each of them adds one operation to `operations`, and how many arguments it has to `arity`.
--
-- KEYS   the marker's key, then one key an operation
-- ARGV   the run_id that the connection was probed with, then for each run of operations of one kind: its letter, how many they are, and the arguments of each
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

local call, try = redis.call, redis.pcall
-- Of this process: nobody else knows it when the script was sent.
local run_id = ARGV[1]
local operations, arity = {}, {}

-- The value of a key. `nil` if there is none; `false` if it is of another type.
local function read(key)
  local value = try('GET', key)
  if type(value) == 'table' then
    if string.find(value.err, 'WRONGTYPE', 1, true) then return false end
    error(value.err, 0)
  end
  -- A missing key reads as false.
  if value == false then return nil end
  return value
end

-- The entry for a key that holds `value`, which is not ours.
local function other(key, value)
  return {value, call('PTTL', key)}
end
