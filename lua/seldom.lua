-- seldom: what a call for tokens has no use for, up to the second half of batch.lua, is made only when something of it is wanted.
--
-- KEYS   none of its own
-- ARGV   none of its own
-- Reply  none of its own
--
-- Every call of a script runs all of it: to make all operations took longer than to carry a handful of them out. What is made here has
-- its names here, because what a function takes from outside of it costs time when the function is made. Safe to repeat.

function seldom()

if made then return made end
local operations, arity = {}, {}
local what, read, tell, wake, one_by_one

-- An error that was caught, as a text.
function what(error)
  return type(error) == 'table' and error.err or tostring(error)
end

-- The value of a key. `nil` if there is none; `false` if it is of another type.
function read(key)
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

