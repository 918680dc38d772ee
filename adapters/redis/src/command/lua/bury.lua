-- Marks terminally failed keys dead.

local function bury(key, r, owner, fence, ttl)
  if not is_of(r, owner, fence) then return 'L' end
  if r.state == DEAD then return 'B' end
  if r.state ~= TERMINAL then return 'L' end
  r.state, r.lease, r.written, r.ttl = DEAD, 0, now, ttl
  save(key, r)
  return 'B'
end

for i = 1, count do
  local owner, fence, ttl
  owner, fence, ttl, at = read('>c16I8I8', ask, at)
  local r = decode(values[i])
  if r then answer(bury(KEYS[i], r, owner, fence, ttl)) else unreadable(values[i]) end
end
return table.concat(answers)
