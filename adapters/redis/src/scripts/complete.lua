-- Records that effects have happened.

local function finish(key, r, owner, fence, ttl, result)
  local top = top_fence(r)
  r.state, r.owner, r.fence, r.started, r.reason, r.lease = COMPLETED, owner, fence, 0, 0, 0
  -- A completion inserted over a later claim's remains carries its own, older fence.
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
    if generation > r.generation then r.generation = generation end
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

for i = 1, #KEYS do
  local owner, fence, generation, ttl, fingerprint, has_result, length, result
  owner, fence, generation, ttl, fingerprint, has_result, length, at = read('>c16I8I4I8c17BI4', ask, at)
  if has_result == 1 then
    result = sub(ask, at, at + length - 1)
    at = at + length
  end
  local r = decode(values[i])
  if r then
    answer(complete(KEYS[i], r, owner, fence, generation, ttl, optional(fingerprint), result))
  else
    unreadable(values[i])
  end
end
return table.concat(answers)
