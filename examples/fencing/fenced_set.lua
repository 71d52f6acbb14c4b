-- Writes a value with its fencing token, unless a higher token has been seen.
--
-- KEYS   the key of a hash with the fields `token` and `value`, which nothing but these scripts may write
-- ARGV   the token of the grant, the value
-- Reply  {1, highest token seen before, 0 if none}: written
--        {0, highest token seen}: refused, nothing changed; the lock has had a later holder
--        ERR: not a token, nothing changed
--
-- A script, because between reading the token and writing the value a later holder may write.
-- Safe to repeat until the same holder has written something else: the token is still its own then, and the old value would
-- come back.
-- Tokens are compared as numbers ("9" is below "10"). Lua's numbers are doubles, which hold every whole number up to 2^53, and
-- tokens are below that.

local token = ARGV[1] or ''
local number = string.match(token, '^[1-9]%d*$') and tonumber(token)
if not number or number >= 2 ^ 53 then
  return redis.error_reply('ERR a fencing token is a whole number from 1 to 2^53 - 1, without leading zeros')
end

local highest = tonumber(redis.call('HGET', KEYS[1], 'token') or '0')
if number < highest then return {0, highest} end
-- The token's own text: Lua would print large numbers as 9.007e+15.
redis.call('HSET', KEYS[1], 'token', token, 'value', ARGV[2])
return {1, highest}
