-- What a Redis server's Lua has besides Lua. Takes the function that runs a command (an error is a table with `err`) and
-- one that hashes, and gives one that runs a script, whose failure is such a table too.

local run, sha1hex = ...
local plain_pcall = pcall

redis = {pcall = run, sha1hex = sha1hex}

function redis.call(...)
  local reply = run(...)
  if type(reply) == 'table' and reply.err then error(reply, 0) end
  return reply
end

-- As from Redis 7 on: an error that a command raised is caught as its text.
local function unpack_error(ok, result, ...)
  if not ok and type(result) == 'table' and type(result.err) == 'string' then return ok, result.err end
  return ok, result, ...
end

function pcall(...)
  return unpack_error(plain_pcall(...))
end

-- Set anew before every call, as they are on a server.
KEYS, ARGV = {}, {}
print, dofile, loadfile = nil, nil, nil

setmetatable(_G, {
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
})

return function(script)
  local ok, result = pcall(script)
  if ok then return result end
  return {err = type(result) == 'string' and string.match(result, '^%u+ ') and result or 'ERR ' .. tostring(result)}
end
