-- marker (M): changes what a node keeps about itself: which process may vote.
--
-- KEYS   the marker's key
-- ARGV   the marker that has to be there (empty: none), the new one
-- Reply  1 changed, 0 another one is there
--
-- A script, because between looking and writing the node may be emptied, or another proxy may be quicker: whoever ends a
-- quarantine has to find there the mark that it has seen. Safe to repeat: the second time finds another marker.

arity.M = 2
operations.M = function(key, expected, new)
  if (read(key) or '') ~= expected then return 0 end
  call('SET', key, new)
  return 1
end
