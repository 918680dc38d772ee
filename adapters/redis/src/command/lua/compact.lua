-- Compact records: completions in small hashes, which Redis keeps as lists without gaps. This file follows `record.lua`.
--
-- A scope has a directory, `KEYS[count + 1]`, from its first compact record until after its last: form, number of slices, unit of
-- time in milliseconds, TTL. A slice is a hash; its name is the directory's and its number. Of a key it holds
--   field   the first 8 bytes of the key
--   value   40 bits: when it was completed, in units, modulo 2^21 (21); how long after its claim (7); owner and fence (8); bits of
--           the 9th byte of the key (4). Then the first two bytes of the fingerprint, if there is one.
-- All compact records of a scope have the directory's TTL: a completion with another one stays a record of its own, as one does
-- that is not of the first claim, or has a result. A record of its own precedes a compact one.
--
-- Slices grow in number one at a time (linear hashing): slice `slices - p`, where `p` is the largest power of two among the numbers
-- up to `slices`, gives half of its fields to the new one. Expired fields are removed when the expiry of their slice is moved on, at
-- least once in a quarter of the TTL; so none is there when its time comes round again, after eight times the TTL.

-- The form `C`; another one belongs to a later version.
local DIRECTORY = '>c1I4I4I7'
local TIMES, LONGEST = 2097152, 400 * 86400 * 1000000
-- Redis keeps up to 128 fields in a list by default; see `redis-large-slices` of the start check.
local CROWDED = 112

local directory_key = KEYS[count + 1]
-- nil: there is none. A string: it is of a later version, or damaged.
local directory = nil

local function differs(kept, given)
  return kept and given and kept ~= sub(given, 1, #kept)
end

local function slice_name(number)
  return directory_key .. pack('>I4', number)
end

-- The largest power of two up to the number of slices.
local function power()
  local p = 1
  while p * 2 <= directory.slices do p = p * 2 end
  return p
end

local function number_of(field)
  local a, b, c, d = byte(field, 1, 4)
  local hash = ((a * 256 + b) * 256 + c) * 256 + d
  local number = hash % (2 * directory.power)
  return number < directory.slices and number or number - directory.power
end

local function check_of(key)
  return byte(key, -8) % 16
end

-- In quarters of a power of two of milliseconds, rounded up; 0: none.
local function short_span(span)
  if span < 1000 then return 0 end
  return math.min(127, math.ceil(4 * math.log(span / 1000) / math.log(2)) + 1)
end

-- When a field of this value was completed, rounded up to a unit. The clock may have been set back since.
local function completed_at(number)
  local unit = directory.unit * 1000
  local units = math.floor(now / unit)
  local ago = (units - math.floor(number / 524288)) % TIMES
  if ago >= TIMES / 2 then ago = ago - TIMES end
  return (units - ago) * unit
end

local function is_expired(value)
  return #value >= 5 and now >= completed_at(read('>I5', value)) + directory.ttl
end

-- The compact record of a key; false if there is none.
local function find(key)
  local field = sub(key, -16, -9)
  local slice = slice_name(number_of(field))
  local value = call('HGET', slice, field)
  if not value then return false end
  -- A form that no version before this one has, so that it counts as a later one.
  if #value ~= 5 and #value ~= 7 then return '\3' end
  local number = read('>I5', value)
  if number % 16 ~= check_of(key) or is_expired(value) then return false end
  local written, code = completed_at(number), math.floor(number / 4096) % 128
  local r = brief(written, written, #value == 7 and sub(value, 6) or nil)
  r.first = written - (code == 0 and 0 or math.floor(1000 * 2 ^ ((code - 1) / 4)))
  r.tag, r.expires, r.slice, r.field = math.floor(number / 16) % 256, written + directory.ttl, slice, field
  return r
end

if directory_key and values[count + 1] then
  directory = values[count + 1]
  if byte(directory) == 67 and #directory == struct.size(DIRECTORY) then
    local _, slices, unit, ttl = read(DIRECTORY, directory)
    if slices > 0 and unit > 0 and ttl <= LONGEST then
      directory = { slices = slices, unit = unit, ttl = ttl }
      directory.power = power()
    end
  end
  for i = 1, count do
    if not values[i] then values[i] = type(directory) == 'table' and find(KEYS[i]) or type(directory) == 'string' and directory end
  end
end
