-- tokens (T), restart (S), advance (U): the designated counter of fencing tokens.
--
-- KEYS   the counter's key
-- ARGV   T: how many, a random mark; S: the mark, where to start, the ceiling; U: the new ceiling
-- Reply  T: {last, ceiling, run_id} the highest number of the block; {last, ceiling, run_id, 0} no more below the ceiling;
--           {mark, run_id} the counter is lost, and this mark stands in its place
--        S: 1 it counts from there, 0 another mark stands there, or none
--        U: 1 done, 0 it is not this process's counter, or its ceiling is not lower
--
-- The counter carries the run_id of the process that it was started on. A process that finds another one there, or nothing,
-- has lost the newest numbers: a restart from a snapshot that is a second old is enough. It hands out no token until the
-- counter was started again above all that it may have handed out, which is what the ceiling on the lock nodes is for.
-- A script, because looking and counting have to be one step; and because whoever starts the counter again has to find the
-- mark there that it has seen: without it, one that was held up puts the counter back after a second loss.
-- Repeated, T costs numbers; S and U find their work done.

local function count_on(key, last, ceiling)
  call('SET', key, string.format(counting, run_id, last, ceiling))
end

arity.T = 2
operations.T = function(key, count, mark)
  local entry = hand_out(key, count)
  if entry then return entry end
  local stored = read(key) or ''
  local state, found_by, standing = string.match(stored, '^(%a+) (%S+) (%S+)$')
  if found_by ~= run_id or (state ~= 'lost' and state ~= 'new') then
    -- Whether anything was ever counted here tells a new cluster from one that lost everything.
    state = (stored == '' or state == 'new') and 'new' or 'lost'
    standing = mark
    call('SET', key, state .. ' ' .. run_id .. ' ' .. mark)
  end
  return {standing, run_id}
end

arity.S = 3
operations.S = function(key, mark, start, ceiling)
  local marked = run_id .. ' ' .. mark
  local stored = read(key)
  if stored ~= 'lost ' .. marked and stored ~= 'new ' .. marked then return 0 end
  count_on(key, start, ceiling)
  return 1
end

arity.U = 1
operations.U = function(key, ceiling)
  local now = read(key) and hand_out(key, '0')
  if not now or tonumber(ceiling) <= now[2] then return 0 end
  count_on(key, now[1], ceiling)
  return 1
end
