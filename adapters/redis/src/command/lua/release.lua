-- Releases claims whose handlers were never started. Owner and fence are kept, so that a repeat is recognised.

for i = 1, count do
  local owner, fence
  owner, fence, at = read('>c16I8', ask, at)
  local r = decode(values[i])
  if not r then
    unreadable(values[i])
  elseif not is_of(r, owner, fence) then
    answer('N')
  elseif r.state == PENDING then
    r.state, r.started, r.lease, r.written = ABSENT, 0, 0, now
    save(KEYS[i], r)
    answer('Y')
  else
    answer(r.state == ABSENT and 'Y' or 'N')
  end
end
return table.concat(answers)
