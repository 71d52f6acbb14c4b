-- scan (K): tells a part of the locks whose keys begin alike.
--
-- KEYS   how the keys begin
-- ARGV   where the last part ended (0 at first)
-- Reply  {where this part ends (0: at the end), {key, value, ms, key, value, ms, ..}}: keys of other types are left out, long
--        values are cut, and `ms` is what PTTL says
--
-- Keys that are there all the time are told once at least, maybe twice; those that come or go meanwhile may be.
-- A script, because value and time have to be of the same instant, and because a call a key would cost hundreds of them.
-- Reads only, so it is safe to repeat.

-- Keys looked at in one part: a server is kept busy for less than a millisecond, if all of them are locks.
local some_keys = 200
-- Enough of a value to tell it from others, and more than redlockd writes.
local some_bytes = 256

arity.K = 1
operations.K = function(beginning, from)
  -- The characters that a pattern would read as something else.
  local pattern = string.gsub(beginning, '[*?%[%]\\]', '\\%0') .. '*'
  local scanned = call('SCAN', from, 'MATCH', pattern, 'COUNT', some_keys)
  local locks = {}
  for _, key in ipairs(scanned[2]) do
    local value = read(key)
    if value then
      local count = #locks
      locks[count + 1], locks[count + 2], locks[count + 3] = key, string.sub(value, 1, some_bytes), call('PTTL', key)
    end
  end
  return {scanned[1], locks}
end
