-- repair (H): gives a node that has lost the key the value back, after a renewal succeeded on a quorum.
--
-- KEYS   the lock's key
-- ARGV   our value, the instant of its end on this node's own clock, in ms since 1970
-- Reply  1 set, 0 something is there
--
-- The end is an instant and not a TTL, so that a repair that comes late plants nothing.
-- A script only to travel in the batch. Safe to repeat.

arity.H = 2
operations.H = function(key, value, ends_at)
  if call('SET', key, value, 'NX', 'PXAT', ends_at) then return 1 end
  return 0
end
