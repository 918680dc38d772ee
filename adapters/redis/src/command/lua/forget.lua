-- Forgets keys whatever their state. The fence stays for as long as the record would have lived, so that the next one is
-- larger even if the clock was set back.

for i = 1, count do
  local r = decode(values[i])
  if not r then
    unreadable(values[i])
  elseif r.known then
    local gone = nothing(top_fence(r))
    gone.state = FORGOTTEN
    if r.slice then
      call('HDEL', r.slice, r.field)
      call('SET', KEYS[i], encode(gone), 'PXAT', expiry_at(r.expires))
    else
      call('SET', KEYS[i], encode(gone), 'KEEPTTL')
    end
    answer('Y')
  else
    answer('N')
  end
end
return table.concat(answers)
