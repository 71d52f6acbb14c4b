-- acquire and count (Q), raise (B), tell (G), bring up (V): the quorum counter. Every node counts in 16,384 buckets by the hash
-- of the lock's name, and a token is the highest number among the nodes that granted.
--
-- KEYS   Q, B: the lock's key; G, V: the counters' key
-- ARGV   Q: our value, the TTL in ms, the bucket; B: our value, the bucket, the token
--        G: where the last part ended (0 at first); V: the base, the numbers as G tells them
-- Reply  Q: {number} set, and the bucket stands there now; else as acquire
--        B: 1 the bucket stands at the token at least, 0 our value is gone
--        G: {base, where this part ends (0: at the end), numbers} as `bucket=number` with commas; V: 1
--
-- A bucket that was never used stands at the base, which is above all tokens of earlier times. B raises only under our value:
-- then every later grant of the name counts from the token on.
-- A script, because taking the lock and counting have to be one step, and because numbers must never fall. Q is not repeated,
-- like acquire; the others may be.

local counters = 'redlockd:fence:buckets'

local function base()
  local found = call('HGET', counters, 'base')
  -- Before anything is written: a node that is not brought up grants nothing.
  if not found then error('NOCOUNTERS this node has no fencing counters yet', 0) end
  return tonumber(found)
end

local function count(bucket, least)
  local number = call('HINCRBY', counters, bucket, 1)
  if number <= least then
    number = least + 1
    call('HSET', counters, bucket, string.format('%.0f', number))
  end
  return number
end

arity.Q = 3
operations.Q = function(key, value, ttl, bucket)
  local least = base()
  local entry = acquire(key, value, ttl)
  if entry ~= 1 then return entry end
  return {count(bucket, least)}
end

local function lift(bucket, number)
  if tonumber(number) > (tonumber(call('HGET', counters, bucket) or 0)) then call('HSET', counters, bucket, number) end
end

arity.B = 3
operations.B = function(key, value, bucket, token)
  if read(key) ~= value then return 0 end
  lift(bucket, token)
  return 1
end

-- About so many buckets in one part.
local part = 1000

arity.G = 1
operations.G = function(_, from)
  local scanned = call('HSCAN', counters, from, 'COUNT', part)
  local fields, numbers = scanned[2], {}
  for i = 1, #fields, 2 do
    if fields[i] ~= 'base' then numbers[#numbers + 1] = fields[i] .. '=' .. fields[i + 1] end
  end
  return {tonumber(call('HGET', counters, 'base') or 0), scanned[1], table.concat(numbers, ',')}
end

arity.V = 2
operations.V = function(_, least, numbers)
  lift('base', least)
  for bucket, number in string.gmatch(numbers, '(%d+)=(%d+)') do lift(bucket, number) end
  return 1
end
