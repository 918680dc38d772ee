-- Reads the state of each key: one byte per key.

for i = 1, count do
  local r = decode(values[i])
  if not r then
    unreadable(values[i])
  elseif not r.known then
    answer('-')
  else
    answer(tostring(r.state))
  end
end
return table.concat(answers)
