-- acquire (A), all of a run: takes the keys that nobody has.
--
-- KEYS   the locks' keys
-- ARGV   once: the TTL in ms; of each: our value
-- Reply  of each: 1 set, {value, ms} somebody else's
--
-- What most calls are full of: it stands outside of seldom.lua and does without its functions as long as all is granted and
-- nobody watches. What a value may replace says acquire.lua; why it is a script and not repeated, too.

local function acquire_all(at, count)
  local ttl = args[at]
  local watched = listeners() > 0
  for i = key + 1, key + count do
    local value = args[at + i - key]
    local set = try('SET', keys[i], value, 'NX', 'PX', ttl)
    if not set then
      local ok, entry = pcall(seldom().take_over, keys[i], value, ttl)
      reply[i + 2] = ok and entry or seldom().what(entry)
    elseif set.err then
      reply[i + 2] = set.err
    else
      if watched then seldom().tell('granted', keys[i], value, ttl) end
      reply[i + 2] = 1
    end
  end
end
