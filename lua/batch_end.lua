-- The end of seldom.lua, and the second half of batch.lua: runs the operations in the order in which they came, each under pcall, so that an error of
-- one (a full server, a forbidden command) spoils no other.

end

local keys, args = KEYS, ARGV
local reply = call('TIME')
-- With every vote, so that a node that was emptied a moment ago does not vote.
reply[3] = read(keys[1]) or ''
local key, at = 1, 2
while key < #keys do
  if not operations[args[at]] then seldom() end
  local operation, count, width = operations[args[at]], args[at + 1], arity[args[at]]
  at = at + 2
  for _ = 1, count do
    key = key + 1
    local ok, result = pcall(operation, keys[key], args[at], args[at + 1], args[at + 2], args[at + 3])
    if not ok then
      result = type(result) == 'table' and result.err or tostring(result)
    end
    reply[key + 2] = result
    at = at + width
  end
end
return reply
