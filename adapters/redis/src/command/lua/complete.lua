-- Completes keys: records that their effects have happened.

local function finish(key, r, owner, fence, ttl, result)
  local top = top_fence(r)
  r.state, r.owner, r.fence, r.started, r.reason, r.lease = COMPLETED, owner, fence, 0, 0, 0
  -- A completion that is inserted after a later claim keeps its own, older fence.
  r.above = top > fence and top or 0
  r.written, r.ttl, r.text = now, ttl, result
  save(key, r)
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

-- Nearly all completions have the same TTL.
local last_ttl, last_expiry

-- A fast path of `complete` for the owner of a pending first claim, the most frequent case, which builds no table. Returns
-- false if `complete` must be called.
local function complete_first(key, value, owner, fence, ttl)
  if not value or byte(value) ~= 1 or byte(value, 2) ~= PENDING or #value < FULL_LENGTH then return false end
  local _, _, _, _, has_fingerprint, has_text, own_fence, first, _, _, _, above, attempts, lost, generation, own_owner, at =
    read(FULL, value)
  if own_fence ~= fence or own_owner ~= owner or first ~= fence or has_text == 1
    or above + attempts + lost + generation > 0 then
    return false
  end
  local fingerprint
  if has_fingerprint == 1 then
    if #value < FULL_LENGTH + 16 then return false end
    fingerprint = sub(value, at, at + 15)
  end
  local brief = encode_brief(fence, now - fence, fingerprint)
  if not brief then return false end
  if ttl ~= last_ttl then
    last_ttl, last_expiry = ttl, expiry_at(now + ttl)
  end
  call('SET', key, brief, 'PXAT', last_expiry)
  answer('C')
  return true
end

for i = 1, #KEYS do
  local owner, fence, generation, ttl, fingerprint, has_result, length, result
  owner, fence, generation, ttl, fingerprint, has_result, length, at = read('>c16I8I4I8c17BI4', ask, at)
  if has_result == 1 then
    result = sub(ask, at, at + length - 1)
    at = at + length
  end
  local r = (result or not complete_first(KEYS[i], values[i], owner, fence, ttl)) and decode(values[i])
  if r == false then
    -- `complete_first` has answered.
  elseif r then
    answer(complete(KEYS[i], r, owner, fence, generation, ttl, optional(fingerprint), result))
  else
    unreadable(values[i])
  end
end
return table.concat(answers)
