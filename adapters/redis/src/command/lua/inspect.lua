-- Reads records without changing them.

-- Of a result only what `StoredResult::of` needs is sent.
local HEAD = 34

for i = 1, count do
  local r = decode(values[i])
  local expires_in = r and r.expires and math.floor(left(r.expires) / 1000) + 1 or call('PTTL', KEYS[i])
  if not r then
    unreadable(values[i])
  elseif not r.known or expires_in == -2 then
    answer('N')
  else
    local holds = r.state == PENDING or r.state == TERMINAL
    local error = r.state ~= COMPLETED and r.text or nil
    local has_result = r.state == COMPLETED and r.text
    answer(pack('>c1BI8I4I4I4BI8I8I8I8BBI4BI4', 'K', r.state, r.fence, r.attempts, r.lost, r.generation, holds and 1 or 0,
      left(r.lease), since(r.first), since(r.written), expires_in > 0 and expires_in - 1 or 0, r.reason,
      has_result and 1 or 0, has_result and #r.text or 0, error and 1 or 0, error and #error or 0) .. (error or '')
      .. (has_result and pack('>I4', math.min(#r.text, HEAD)) .. sub(r.text, 1, HEAD) or ''))
  end
end
return table.concat(answers)
