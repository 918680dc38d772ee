-- Says in which state each key is: one byte a key.

for i = 1, #KEYS do
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
