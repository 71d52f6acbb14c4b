-- Reads a value for the holder of a fencing token, and refuses lower tokens from now on.
--
-- For whoever computes the new value from the old one: without it an earlier holder can still write between this holder's read
-- and its write, and that write would be lost. Whoever only looks needs no token: HGET key value.
--
-- KEYS   the key of a hash that fenced_set.lua writes
-- ARGV   the token of the grant
-- Reply  {1, highest token seen before, 0 if none, value or nil}
--        {0, highest token seen}: refused, nothing changed; the lock has had a later holder
--        ERR: not a token, nothing changed
--
-- A script, because a token that is compared and then written in two steps may be written over a higher one.
-- Safe to repeat.

local token = ARGV[1] or ''
local number = string.match(token, '^[1-9]%d*$') and tonumber(token)
if not number or number >= 2 ^ 53 then
  return redis.error_reply('ERR a fencing token is a whole number from 1 to 2^53 - 1, without leading zeros')
end

local highest = tonumber(redis.call('HGET', KEYS[1], 'token') or '0')
if number < highest then return {0, highest} end
redis.call('HSET', KEYS[1], 'token', token)
return {1, highest, redis.call('HGET', KEYS[1], 'value')}
