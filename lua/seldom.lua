-- seldom: the operations that most calls have none of, up to the second half of batch.lua, are made only when one of them comes.
--
-- KEYS   none of its own
-- ARGV   none of its own
-- Reply  none of its own
--
-- Every call of a script runs all of it: to make all operations took longer than to carry a handful of them out. Safe to repeat.

local function seldom()
