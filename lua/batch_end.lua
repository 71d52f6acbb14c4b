-- The second half of batch.lua: runs the operations in the order in which they came, each under pcall, so that an error of
-- one (a full server, a forbidden command) spoils no other.

local reply = redis.call('TIME')
for i = 1, #KEYS do
  local at = 3 * i
  local ok, result = pcall(operations[ARGV[at - 2]], KEYS[i], ARGV[at - 1], ARGV[at])
  if not ok then
    result = type(result) == 'table' and result.err or tostring(result)
  end
  reply[i + 2] = result
end
return reply
