-- Reads, writes and expires the record of a key. This file precedes every other script of this folder.
--
-- The first ARGV[2] of KEYS are records; a further one is the directory of the scope's compact records (`compact.lua`).
-- ARGV[1] is the argument, packed by `codec.rs`; the reply is packed for it.
-- The protocol is that of `onceward::store::transition`: change both together.
-- Times are microseconds of the server's clock. Lua's numbers are doubles, exact up to 2^53: until the year 2255.
--
-- The first byte of a value is its form. An unknown form belongs to a later version and is not changed.
--   1          all fields
--   2          completed at the first attempt by the first claim, with a fingerprint
--   0x30-0x39  the same without a fingerprint: decimal digits, which Redis keeps as an integer of 16 bytes: the fence
--              in microseconds, then three digits for the time until the completion, rounded down
--
-- The TTL of the record is that of the Redis key; the lease is a field, so that the record outlives it.

local call, text, sub, byte = redis.call, string.format, string.sub, string.byte
local pack, read = struct.pack, struct.unpack

local ABSENT, PENDING, FAILED, TERMINAL, COMPLETED, DEAD = 0, 1, 2, 3, 4, 5
-- Only the fence is kept, so that it keeps growing.
local FORGOTTEN = 6

local ATTEMPTS_EXHAUSTED, PROCESS_LOST = 1, 3
local NOBODY = string.rep('\0', 16)

-- form, state, started, reason, has a fingerprint, has a text; fence, first claim, last write, end of lease, TTL,
-- largest fence before this one if larger; attempts, lost, generation; owner. Fingerprint and text follow.
local FULL = '>BBBBBBI7I7I7I7I7I7I4I4I4c16'
-- form, fence, microseconds from the claim to the completion, fingerprint
local BRIEF = '>BI7I4c16'
local FULL_LENGTH, BRIEF_LENGTH = struct.size(FULL), struct.size(BRIEF)
-- Above this fence the integer form no longer fits into 63 bits.
local INTEGER_FENCE = 9223372036854774

-- A value beyond these limits is damaged or foreign: numbers would no longer grow, and claims would never end.
local EXACT, MOST_RUNS = 9007199254740991, 2147483647

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function since(time)
  return time < now and now - time or 0
end

local function left(time)
  return time > now and time - now or 0
end

-- A span in three digits: 990 to 999 are 0 to 9 µs, below that two leading digits and the zeros after them.
local function span_code(span)
  if span < 10 then return 990 + span end
  local zeros = 0
  while span >= 100 do
    span = span / 10
    zeros = zeros + 1
  end
  if zeros > 10 then return nil end
  return zeros * 90 + math.floor(span) - 10
end

local function span_of(code)
  if code >= 990 then return code - 990 end
  local zeros = math.floor(code / 90)
  return (code - zeros * 90 + 10) * 10 ^ zeros
end

-- The record of an unknown key whose fences have reached `fence`.
local function nothing(fence)
  return {
    known = false, state = ABSENT, started = 0, reason = 0, fence = fence, first = 0, written = 0, lease = 0, ttl = 0,
    above = 0, attempts = 0, lost = 0, generation = 0, owner = NOBODY,
  }
end

-- A completion by the first claim, with defaults for all other fields.
local function brief(fence, written, fingerprint)
  return {
    known = true, state = COMPLETED, started = 0, reason = 0, fence = fence, first = fence, written = written,
    lease = 0, ttl = 0, above = 0, attempts = 0, lost = 0, generation = 0, fingerprint = fingerprint,
  }
end

local function top_fence(r)
  return r.above > r.fence and r.above or r.fence
end

-- Returns nil for a form of a later version and for a damaged value.
local function decode(value)
  if not value then return nothing(0) end
  -- A compact record.
  if type(value) == 'table' then return value end
  local form, length = byte(value), #value
  if form == 1 then
    if length < FULL_LENGTH or byte(value, 2) > FORGOTTEN then return nil end
    local _, state, started, reason, has_fingerprint, has_text, fence, first, written, lease, ttl, above, attempts,
      lost, generation, owner, at = read(FULL, value)
    local r = {
      known = true, state = state, started = started, reason = reason, fence = fence, first = first,
      written = written, lease = lease, ttl = ttl, above = above, attempts = attempts, lost = lost,
      generation = generation, owner = owner,
    }
    if fence >= EXACT or above >= EXACT or first > EXACT or written > EXACT or lease > EXACT or ttl > EXACT
      or attempts > MOST_RUNS or lost > MOST_RUNS or started > 1 or has_fingerprint > 1 or has_text > 1 then
      return nil
    end
    if state == FORGOTTEN then return nothing(top_fence(r)) end
    if has_fingerprint == 1 then
      if length < FULL_LENGTH + 16 then return nil end
      r.fingerprint = sub(value, at, at + 15)
      at = at + 16
    end
    if has_text == 1 then r.text = sub(value, at) end
    return r
  end
  if form == 2 and length == BRIEF_LENGTH then
    local _, fence, span, fingerprint = read(BRIEF, value)
    if fence + span >= EXACT then return nil end
    return brief(fence, fence + span, fingerprint)
  end
  if form and form >= 48 and form <= 57 and string.find(value, '^%d%d%d%d+$') then
    local fence, span = tonumber(sub(value, 1, -4)), span_of(tonumber(sub(value, -3)))
    if length > 19 or fence + span >= EXACT then return nil end
    return brief(fence, fence + span)
  end
end

-- Returns nil if the values do not fit.
local function encode_brief(fence, span, fingerprint)
  if span < 0 then return nil end
  if fingerprint then
    if span <= 4294967295 then return pack(BRIEF, 2, fence, span, fingerprint) end
  elseif fence <= INTEGER_FENCE then
    local code = span_code(span)
    if code then return text('%.0f%03d', fence, code) end
  end
end

-- A completion by the first claim.
local function is_first(r)
  return r.state == COMPLETED and r.first == r.fence and r.attempts == 0 and r.lost == 0 and r.generation == 0
    and r.above == 0 and not r.text
end

local function encode(r)
  if is_first(r) then
    local brief = encode_brief(r.fence, r.written - r.fence, r.fingerprint)
    if brief then return brief end
  end
  return pack(FULL, 1, r.state, r.started, r.reason, r.fingerprint and 1 or 0, r.text and 1 or 0, r.fence, r.first,
    r.written, r.lease, r.ttl, r.above, r.attempts, r.lost, r.generation, r.owner)
    .. (r.fingerprint or '') .. (r.text or '')
end

-- In milliseconds. Redis keeps a key until the end of this one: never too short, and at most 1 ms too long.
local function expiry_at(time)
  return text('%.0f', math.floor(time / 1000))
end

local function expiry(r)
  local from = r.lease > r.written and r.lease or r.written
  return expiry_at(from + r.ttl)
end

local function save(key, r)
  call('SET', key, encode(r), 'PXAT', expiry(r))
end

-- Owner and fence of a compact record. One byte: a compact record has no room for more.
local function tag_of(owner, fence)
  return (byte(owner) + fence) % 256
end

-- The brief forms do not store the owner; the fence, which is never issued twice, identifies the claim.
local function is_of(r, owner, fence)
  if r.tag then return r.tag == tag_of(owner, fence) end
  return r.known and r.fence == fence and (not r.owner or r.owner == owner)
end

local answers = {}
local function answer(packed)
  answers[#answers + 1] = packed
end

-- Answers for a record of a later version, or a damaged one.
local function unreadable(value)
  answer(pack('>c1B', '!', byte(value) or 0))
end

local function optional(fingerprint)
  if byte(fingerprint) == 1 then return sub(fingerprint, 2) end
end

local ask = ARGV[1]
local count, is_compact = tonumber(ARGV[2]), ARGV[3] == 'compact'
local values = call('MGET', unpack(KEYS))
local at = 1

