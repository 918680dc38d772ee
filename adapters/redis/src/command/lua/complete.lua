-- Completes keys: records that their effects have happened.

local function finish(key, r, owner, fence, ttl, result)
  local top = top_fence(r)
  r.state, r.owner, r.fence, r.started, r.reason, r.lease = COMPLETED, owner, fence, 0, 0, 0
  -- A completion that is inserted after a later claim keeps its own, older fence.
  r.above = top > fence and top or 0
  r.written, r.ttl, r.text = now, ttl, result
  if not (is_first(r) and save_compact(key, owner, fence, ttl, r.fingerprint)) then save(key, r) end
end

local function complete(key, r, owner, fence, generation, ttl, fingerprint, result)
  if not r.known then
    r = nothing(top_fence(r))
    r.fingerprint, r.generation, r.first = fingerprint, generation, now
    finish(key, r, owner, fence, ttl, result)
    return 'I'
  end
  local state, mine = r.state, is_of(r, owner, fence)
  if state == PENDING and mine then
    finish(key, r, owner, fence, ttl, result)
    return 'C'
  elseif state == ABSENT then
    if generation == r.generation + 1 then r.generation = generation end
    r.fingerprint = r.fingerprint or fingerprint
    finish(key, r, owner, fence, ttl, result)
    return 'I'
  elseif state == COMPLETED then
    return mine and 'R' or 'D'
  elseif state == DEAD then
    return 'D'
  end
  return 'H'
end

-- Completions by the owner of a pending first claim, the most frequent case, take a path of their own, which builds no table.
-- Claims of one batch differ in their owners and fingerprints only, so that what follows from the other fields is worked out
-- once: `alike` is the beginning of such a record, `terms` the fence, generation and TTL of its completion.
local OWNER_AT = FULL_LENGTH - 15
local alike, terms, brief_value, brief_head
-- `nil`: the Redis key keeps the expiry that the claim gave it.
local expiry_time

-- Sets them from a record. The Redis key may keep the expiry that the claim gave it, which is later by what is left of the
-- lease, if that is at most a thousandth of the TTL: it is never too short, and the key's expiry need not be changed.
local function learn(value, fence, ttl)
  alike = nil
  if byte(value) ~= 1 or byte(value, 2) ~= PENDING or #value < FULL_LENGTH then return end
  local _, _, _, _, has_fingerprint, has_text, own_fence, first, written, lease, own_ttl, above, attempts, lost, generation =
    read(FULL, value)
  if own_fence ~= fence or first ~= fence or has_text ~= 0 or has_fingerprint > 1
    or above + attempts + lost + generation > 0 then
    return
  end
  if has_fingerprint == 1 then
    local sample = encode_brief(fence, now - fence, NOBODY)
    brief_value, brief_head = nil, sample and sub(sample, 1, -17)
  else
    brief_value, brief_head = encode_brief(fence, now - fence), nil
  end
  if not (brief_value or brief_head) then return end
  local later = (lease > written and lease or written) + own_ttl - now - ttl
  if later >= 0 and later <= ttl / 1000 then
    expiry_time = nil
  else
    expiry_time = expiry_at(now + ttl)
  end
  alike = sub(value, 1, OWNER_AT - 1)
end

-- Returns false if `complete` must be called. `from` is where the item begins in the argument.
local function complete_first(key, value, from)
  local asked = sub(ask, from + 16, from + 35)
  if asked ~= terms or sub(value, 1, OWNER_AT - 1) ~= alike then
    terms = asked
    local fence, _, ttl = read('>I8I4I8', asked)
    learn(value, fence, ttl)
    if not alike then return false end
  end
  local owner = sub(value, OWNER_AT, FULL_LENGTH)
  if owner ~= sub(ask, from, from + 15) then return false end
  if is_compact then
    local fingerprint
    if brief_head then
      if #value ~= FULL_LENGTH + 16 then return false end
      fingerprint = sub(value, FULL_LENGTH + 1)
    end
    local fence, _, ttl = read('>I8I4I8', asked)
    if save_compact(key, owner, fence, ttl, fingerprint) then return true end
  end
  local brief = brief_value
  if not brief then
    if #value ~= FULL_LENGTH + 16 then return false end
    brief = brief_head .. sub(value, FULL_LENGTH + 1)
  end
  if expiry_time then
    call('SET', key, brief, 'PXAT', expiry_time)
  else
    call('SET', key, brief, 'KEEPTTL')
  end
  return true
end

for i = 1, count do
  local value = values[i]
  if value and type(value) == 'string' and byte(ask, at + 53) == 0 and complete_first(KEYS[i], value, at) then
    answers[#answers + 1] = 'C'
    at = at + 58
  else
    local owner, fence, generation, ttl, fingerprint, has_result, length, result
    owner, fence, generation, ttl, fingerprint, has_result, length, at = read('>c16I8I4I8c17BI4', ask, at)
    if has_result == 1 then
      result = sub(ask, at, at + length - 1)
      at = at + length
    end
    local r = decode(value)
    if r then
      answer(complete(KEYS[i], r, owner, fence, generation, ttl, optional(fingerprint), result))
    else
      unreadable(value)
    end
  end
end
if #gone > 0 then call('DEL', unpack(gone)) end
return table.concat(answers)
