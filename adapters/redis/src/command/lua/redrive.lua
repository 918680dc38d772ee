-- Redrives dead keys: opens them for the next generation.

local function redrive(key, r, generation, next, ttl)
  -- 0: the generation of the letter is the last possible one.
  if not r.known or next == 0 then return 'N' end
  -- A terminal failure whose lease is over: its letter was published and only the burial is missing.
  local dead = r.state == DEAD or r.state == TERMINAL and now >= r.lease
  if dead and r.generation == generation then
    local opened = nothing(r.fence)
    opened.known, opened.above, opened.generation = true, r.above, next
    opened.first, opened.written, opened.ttl = now, now, ttl
    save(key, opened)
    return 'O'
  end
  -- The effect has happened, in whichever generation: nothing is left to redrive.
  if r.state == COMPLETED then return 'R' end
  if r.generation <= generation then return 'N' end
  -- A generation after the next one exists, so the next one has died.
  if r.generation > next or r.state == DEAD then return 'R' end
  return 'O'
end

for i = 1, count do
  local generation, next, ttl
  generation, next, ttl, at = read('>I4I4I8', ask, at)
  local r = decode(values[i])
  if r then answer(redrive(KEYS[i], r, generation, next, ttl)) else unreadable(values[i]) end
end
return table.concat(answers)
