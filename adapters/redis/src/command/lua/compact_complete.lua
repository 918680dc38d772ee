-- Writes compact records. This file follows `compact.lua` in the script that completes keys.

-- Records that have become compact.
local gone = {}
-- A slice is far too large.
local looks = false

local function save_directory(...)
  call('SET', directory_key, pack(DIRECTORY, 'C', directory.slices, directory.unit, directory.ttl), ...)
end

-- Moves the expiry of the directory on: it outlives all slices.
local function keep_directory(until_ms)
  directory.lasts = directory.lasts or now / 1000 + call('PTTL', directory_key)
  if directory.lasts < until_ms then
    directory.lasts = until_ms + directory.ttl / 4000
    call('PEXPIREAT', directory_key, text('%.0f', directory.lasts))
  end
end

-- Calls a command with many arguments, of which Lua can pass some 8,000.
local MOST = 500

local function call_in_parts(command, slice, arguments)
  for i = 1, #arguments, MOST do
    call(command, slice, unpack(arguments, i, math.min(i + MOST - 1, #arguments)))
  end
end

local function remove_expired(slice)
  local all, expired = call('HGETALL', slice), {}
  for i = 1, #all, 2 do
    if is_expired(all[i + 1]) then expired[#expired + 1] = all[i] end
  end
  call_in_parts('HDEL', slice, expired)
end

-- Adds a slice, which takes half of the fields of another one; that one loses its expired fields, too. No field is removed before it
-- is where the directory leads to.
local function add_slice()
  local new, p = directory.slices, directory.power
  local from, to = slice_name(new - p), slice_name(new)
  local all, lasts = call('HGETALL', from), call('PTTL', from)
  directory.slices = new + 1
  directory.power = power()
  local kept, moved, removed = {}, {}, {}
  for i = 1, #all, 2 do
    local moves, expired = number_of(all[i]) == new, is_expired(all[i + 1])
    if moves or expired then removed[#removed + 1] = all[i] else kept[#kept + 1], kept[#kept + 2] = all[i], all[i + 1] end
    if moves and not expired then moved[#moved + 1], moved[#moved + 2] = all[i], all[i + 1] end
  end
  -- What a call that failed here has left.
  call('DEL', to)
  call_in_parts('HSET', to, moved)
  -- Without an expiry, after a call that failed between the two commands, it has one from the next write on.
  if #moved > 0 and lasts >= 0 then call('PEXPIREAT', to, text('%.0f', now / 1000 + lasts)) end
  save_directory('KEEPTTL')
  if #kept > 0 and #kept <= MOST then
    -- Redis makes a list of it again if it was too large for one.
    call('DEL', from)
    call('HSET', from, unpack(kept))
    if lasts >= 0 then call('PEXPIREAT', from, text('%.0f', now / 1000 + lasts)) end
  else
    call_in_parts('HDEL', from, removed)
  end
end

-- Whether a field of this value may be written for a key: not if it is of a later version, or another key's that agrees in 64 bits.
local function is_free(value, key)
  if not value then return true end
  return (#value == 5 or #value == 7) and (read('>I5', value) % 16 == check_of(key) or is_expired(value))
end

-- Makes the completion of a first claim compact. Returns false if it must be a record of its own.
local function save_compact(key, owner, fence, ttl, fingerprint)
  if not is_compact or not directory_key or ttl > LONGEST or fence > now then return false end
  if directory == nil then
    directory = { slices = 1, power = 1, unit = math.max(1, math.ceil(ttl / 262144000)), ttl = ttl }
    directory.lasts = (now + 2 * ttl) / 1000 + 1
    save_directory('PXAT', text('%.0f', directory.lasts))
  elseif type(directory) == 'string' or directory.ttl ~= ttl then
    return false
  end
  local unit = directory.unit * 1000
  local units = math.ceil(now / unit)
  local field = sub(key, -16, -9)
  local slice = slice_name(number_of(field))
  local number = ((units % TIMES * 128 + short_span(now - fence)) * 256 + tag_of(owner, fence)) * 16 + check_of(key)
  if not is_free(call('HGET', slice, field), key) then return false end
  call('HSET', slice, field, pack('>I5', number) .. (fingerprint and sub(fingerprint, 1, 2) or ''))
  local until_ms = (units * unit + ttl) / 1000 + 1
  local is_late = now / 1000 + call('PTTL', slice) < until_ms
  if is_late then
    local lasts = until_ms + ttl / 4000
    call('PEXPIREAT', slice, text('%.0f', lasts))
    keep_directory(lasts)
    remove_expired(slice)
  end
  -- One write in eight looks, which no publisher can choose; all of the call once a slice is far too large.
  if is_late or looks or (byte(field, 8) + now) % 8 == 0 then
    local fields = call('HLEN', slice)
    looks = looks or fields > 2 * CROWDED
    if fields > CROWDED then add_slice() end
  end
  gone[#gone + 1] = key
  return true
end
