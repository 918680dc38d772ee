-- Renews leases from now on, and marks runs as started if requested.

for i = 1, count do
  local owner, fence, lease, started
  owner, fence, lease, started, at = read('>c16I8I8B', ask, at)
  local r = decode(values[i])
  if not r then
    unreadable(values[i])
  elseif r.state == PENDING and is_of(r, owner, fence) then
    r.lease, r.written = now + lease, now
    if started == 1 then r.started = 1 end
    save(KEYS[i], r)
    answer('R')
  else
    answer('L')
  end
end
return table.concat(answers)
