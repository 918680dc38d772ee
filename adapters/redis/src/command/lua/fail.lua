-- Writes failed runs: attempts + 1, the error, and the end of the claim.

local function recorded(r)
  return pack('>c1I4I8', 'R', r.attempts, since(r.first))
end

local function fail(key, r, owner, fence, reason, message)
  if not is_of(r, owner, fence) then return 'L' end
  if r.state == FAILED or r.state == TERMINAL then return recorded(r) end
  if r.state ~= PENDING then return 'L' end
  r.attempts, r.started, r.reason, r.written, r.text = r.attempts + 1, 0, reason, now, message
  if reason > 0 then
    r.state = TERMINAL
  else
    r.state, r.lease = FAILED, 0
  end
  save(key, r)
  return recorded(r)
end

for i = 1, count do
  local owner, fence, reason, length
  owner, fence, reason, length, at = read('>c16I8BI4', ask, at)
  local message = sub(ask, at, at + length - 1)
  at = at + length
  local r = decode(values[i])
  if r then answer(fail(KEYS[i], r, owner, fence, reason, message)) else unreadable(values[i]) end
end
return table.concat(answers)
