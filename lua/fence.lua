-- tokens (T): hands out a block of fencing tokens.
--
-- KEYS   the counter's key
-- ARGV   how many
-- Reply  the highest number of the block
--
-- A counter without any trace starts at the current microseconds since 1970, so that the loss of everything brings no old
-- number back: nobody takes a million tokens a second for as long as that.
-- A script, because looking whether the counter is there and counting have to be one step.
-- Repeating it costs numbers, nothing else.

arity.T = 1
operations.T = function(key, count)
  if call('EXISTS', key) == 0 then
    local now = call('TIME')
    call('SET', key, string.format('%.0f', now[1] * 1000000 + now[2]))
  end
  return call('INCRBY', key, count)
end
