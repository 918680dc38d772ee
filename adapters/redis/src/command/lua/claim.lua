-- Claims keys: the exclusive right to run their handlers.

local lease, ttl, max_attempts
lease, ttl, max_attempts, at = read('>I8I8I4', ask)
local least_attempts = max_attempts < 1 and 1 or max_attempts
local lease_until = now + lease
local fresh_expiry = expiry_at(lease_until + ttl)

local function claimed(r)
  answer(pack('>c1I8I4I4I4I8', 'C', r.fence, r.attempts + 1, r.lost, r.generation, left(r.lease)))
end

local function exhausted(r, last)
  local reason = r.reason == 0 and ATTEMPTS_EXHAUSTED or r.reason
  answer(pack('>c1I8BI4I4I4I8I8BI4', 'X', r.fence, reason, r.attempts, r.lost, r.generation, since(r.first), since(last),
    r.text and 1 or 0, r.text and #r.text or 0) .. (r.text or ''))
end

local function hand_out(key, r, owner)
  local last = r.written
  local fence = top_fence(r) + 1
  r.owner = owner
  r.fence = fence > now and fence or now
  r.above, r.started, r.lease, r.written, r.ttl = 0, 0, lease_until, now, ttl
  if r.state == TERMINAL or r.attempts >= least_attempts then
    r.state = TERMINAL
    if r.reason == 0 then r.reason = ATTEMPTS_EXHAUSTED end
    exhausted(r, last)
  else
    r.state = PENDING
    claimed(r)
  end
  call('SET', key, encode(r), 'PXAT', fresh_expiry)
end

-- Reopens a dead key. The claim sets the fingerprint: the payload of the letter may have been corrected.
local function reopen(r)
  local opened = nothing(r.fence)
  opened.above, opened.first, opened.known = r.above, now, true
  opened.written, opened.ttl = r.written, r.ttl
  return opened
end

-- Counts a lease that expired before its owner completed or failed the claim.
local function lapse(r)
  r.lost = r.lost + 1
  if r.started == 1 then
    r.attempts = r.attempts + 1
    if r.attempts >= max_attempts then r.reason = PROCESS_LOST end
  end
end

local function claim(key, r, owner, generation, fingerprint)
  if not r.known then
    r = nothing(top_fence(r))
    r.fingerprint, r.generation, r.first = fingerprint, generation, now
    return hand_out(key, r, owner)
  end
  -- A generation beyond the next one belongs to no letter of this record.
  local state, live, mine, newer = r.state, now < r.lease, r.owner == owner, generation == r.generation + 1
  local redrives = newer and (state == DEAD or state == TERMINAL)
  if not redrives and differs(r.fingerprint, fingerprint) then return answer('M') end
  if state == COMPLETED then
    return answer(pack('>c1I8BI4', 'D', since(r.written), r.text and 1 or 0, r.text and #r.text or 0) .. (r.text or ''))
  elseif state == DEAD then
    if not newer then
      local reason = r.reason == 0 and ATTEMPTS_EXHAUSTED or r.reason
      return answer(pack('>c1BI8I4', 'B', reason, since(r.written), r.generation))
    end
    r = reopen(r)
  elseif live and (state == PENDING or state == TERMINAL) then
    if not mine then return answer(pack('>c1I8', 'P', left(r.lease))) end
    if state == PENDING then return claimed(r) end
    return exhausted(r, r.written)
  elseif state == PENDING then
    lapse(r)
  elseif state == TERMINAL and newer then
    -- Its letter was published, but the burial was not written.
    r = reopen(r)
  end
  if newer then r.generation = generation end
  r.fingerprint = r.fingerprint or fingerprint
  hand_out(key, r, owner)
end

-- First claims of unknown keys, the most frequent case, take a path of their own, which builds no table: all their records
-- begin alike, and so do their answers.
local FIRST = '\0\0\0\0'
local fresh = pack('>c1I8I4I4I4I8', 'C', now, 1, 0, 0, lease)

local function head(has_fingerprint)
  return sub(pack(FULL, 1, PENDING, 0, 0, has_fingerprint, 0, now, now, now, lease_until, ttl, 0, 0, 0, 0, NOBODY), 1, -17)
end

local plain_head, fingerprint_head = head(0), head(1)

for i = 1, count do
  local value = values[i]
  if not value and sub(ask, at + 16, at + 19) == FIRST then
    if byte(ask, at + 20) == 1 then
      value = fingerprint_head .. sub(ask, at, at + 15) .. sub(ask, at + 21, at + 36)
    else
      value = plain_head .. sub(ask, at, at + 15)
    end
    call('SET', KEYS[i], value, 'PXAT', fresh_expiry)
    answers[#answers + 1] = fresh
    at = at + 37
  else
    local owner, generation, fingerprint
    owner, generation, fingerprint, at = read('>c16I4c17', ask, at)
    local r = decode(value)
    if r then claim(KEYS[i], r, owner, generation, optional(fingerprint)) else unreadable(value) end
  end
end
return table.concat(answers)
