-- Writes compact records. This file follows `compact.lua` in the script that completes keys.

-- Records that have become compact.
local gone = {}

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

local function remove_expired(slice)
  local all, expired = call('HGETALL', slice), {}
  for i = 1, #all, 2 do
    if is_expired(all[i + 1]) then expired[#expired + 1] = all[i] end
  end
  if #expired > 0 then call('HDEL', slice, unpack(expired)) end
end

-- Adds a slice, which takes half of the fields of another one. Both are rewritten, without gaps and without expired fields.
local function add_slice()
  local new, p = directory.slices, directory.power
  local from, to = slice_name(new - p), slice_name(new)
  local all, lasts = call('HGETALL', from), call('PTTL', from)
  directory.slices = new + 1
  directory.power = power()
  if #all > 0 then
    local kept, moved = {}, {}
    for i = 1, #all, 2 do
      if not is_expired(all[i + 1]) then
        local target = number_of(all[i]) == new and moved or kept
        target[#target + 1], target[#target + 2] = all[i], all[i + 1]
      end
    end
    call('DEL', from)
    for slice, fields in pairs({ [from] = kept, [to] = moved }) do
      if #fields > 0 then
        call('HSET', slice, unpack(fields))
        -- Without an expiry, after a call that failed between the two commands, it has one from the next write on.
        if lasts >= 0 then call('PEXPIREAT', slice, text('%.0f', now / 1000 + lasts)) end
      end
    end
  end
  save_directory('KEEPTTL')
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
  call('HSET', slice, field, pack('>I5', number) .. (fingerprint and sub(fingerprint, 1, 2) or ''))
  local until_ms = (units * unit + ttl) / 1000 + 1
  local is_late = now / 1000 + call('PTTL', slice) < until_ms
  if is_late then
    local lasts = until_ms + ttl / 4000
    call('PEXPIREAT', slice, text('%.0f', lasts))
    keep_directory(lasts)
    remove_expired(slice)
  end
  if (is_late or byte(field, 8) % 8 == 0) and call('HLEN', slice) > CROWDED then add_slice() end
  gone[#gone + 1] = key
  return true
end
