-- tokens (T), while the counter counts: the next numbers of it.
--
-- KEYS   the counter's key
-- ARGV   how many
-- Reply  {last, ceiling, run_id} the highest number of the block; {last, ceiling, run_id, 0} no more below the ceiling; nothing
--        if this process has no such counter: then fence.lua looks what there is
--
-- What the counter's server does all the time, one in a call: it stands outside of seldom.lua. Why it is a script, and what the
-- numbers in it are for, says fence.lua. Repeated, it costs numbers.

-- The ceiling stays the text that it is: numbers take long to write.
local counting = 'run %s %.0f %s'

local function hand_out(name, count)
  local stored = try('GET', name)
  if type(stored) ~= 'string' then return nil end
  local owner, last, ceiling = string.match(stored, '^run (%S+) (%d+) (%d+)$')
  if owner == run_id then
    local limit = tonumber(ceiling)
    if last + count > limit then return {tonumber(last), limit, run_id, 0} end
    if count ~= '0' then call('SET', name, string.format(counting, run_id, last + count, ceiling)) end
    return {last + count, limit, run_id}
  end
end
