-- The end of seldom.lua, and the second half of batch.lua: runs the operations in the order in which they came, each under pcall, so that an error of
-- one (a full server, a forbidden command) spoils no other.

-- Each by itself. Where the next run begins.
function one_by_one(letter, at, count)
  local operation, width = operations[letter], arity[letter]
  for i = key + 1, key + count do
    local ok, entry = pcall(operation, keys[i], args[at], args[at + 1], args[at + 2], args[at + 3])
    reply[i + 2] = ok and entry or what(entry)
    at = at + width
  end
  return at
end

made = {read = read, one_by_one = one_by_one}
return made

end

-- With every vote, so that a node that was emptied a moment ago does not vote.
local marker = try('GET', keys[1])
if type(marker) == 'table' then marker = seldom().read(keys[1]) end
reply[3] = marker or ''

local at = 2
while key < #keys do
  local letter, count = args[at], tonumber(args[at + 1])
  at = at + 2
  -- More than one request for tokens is rare, and so is one that is not met.
  local met, entry
  if letter == 'T' and count == 1 then met, entry = pcall(hand_out, keys[key + 1], args[at]) end
  if met and entry then
    reply[key + 3] = entry
    at = at + 2
  else
    at = seldom().one_by_one(letter, at, count)
  end
  key = key + count
end
return reply
