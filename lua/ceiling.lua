-- raise (C), lift (L): the ceiling of the designated counter, as a lock node keeps it: a number, and the run_id of the
-- counter that it belongs to.
--
-- KEYS   the ceiling's key
-- ARGV   C: the new ceiling, the counter's run_id, and `-`; or, where a counter is started in place of another one, what this
--           node was seen to hold (empty: nothing)
--        L: the ceiling as it stands on other nodes
-- Reply  C: 1 raised; {what is there, -1} refused: not lower, or of another counter
--        L: 1
--
-- A script, because comparing and writing have to be one step. Neither ever lowers it. Repeating C finds its own work, and
-- is refused: then somebody has to read it again. L may be repeated.

local function number(stored)
  return tonumber(string.match(stored, '^(%d+) %S+$')) or -1
end

arity.C = 3
operations.C = function(key, new, owner, seen)
  local stored = read(key) or ''
  local allowed = stored == seen
  -- Only a start takes the place of another counter, and not one that was held up until another start.
  if seen == '-' then allowed = number(stored) < 0 or string.match(stored, ' (%S+)$') == owner end
  if tonumber(new) <= number(stored) or not allowed then return {stored, -1} end
  call('SET', key, new .. ' ' .. owner)
  return 1
end

arity.L = 1
operations.L = function(key, given)
  if number(given) > number(read(key) or '') then call('SET', key, given) end
  return 1
end
