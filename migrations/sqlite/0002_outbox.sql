-- Messages that commit together with an effect, and are sent by a relay afterwards. Times are microseconds since the
-- epoch, in the clock of the host. An INSERT sets destination and payload, and optionally id,
-- order_key and headers; all other columns are the outbox's own.
CREATE TABLE onceward_outbox (
    -- In the order of commits: there is one writer at a time, from its first write to its end.
    seq          INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    next_at      INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)), -- not sent before
    written_at   INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)),
    published_at INTEGER,                      -- when the broker had confirmed it
    taken_until  INTEGER NOT NULL DEFAULT 0,   -- a relay has it, and those behind it of its order key
    taken_by     BLOB,
    attempts     INTEGER NOT NULL DEFAULT 0,   -- that failed
    id           TEXT    NOT NULL DEFAULT (lower(hex(randomblob(16)))),
    destination  TEXT    NOT NULL CHECK (destination <> ''),
    order_key    BLOB    CHECK (length(order_key) BETWEEN 1 AND 1024),
    headers      TEXT    NOT NULL DEFAULT '[]', -- JSON: [["name", "text"], ["name", {"hex": "00ff"}]]
    payload      BLOB    NOT NULL,
    error        TEXT                          -- of the last attempt
) STRICT;

-- What waits, by order key; by time where there is none; and what can be removed.
CREATE INDEX onceward_outbox_by_order_key ON onceward_outbox (order_key, seq) WHERE published_at IS NULL;
CREATE INDEX onceward_outbox_by_time ON onceward_outbox (next_at, seq) WHERE published_at IS NULL AND order_key IS NULL;
CREATE INDEX onceward_outbox_published ON onceward_outbox (published_at) WHERE published_at IS NOT NULL;

-- A relay could not send what it cannot read.
CREATE TRIGGER onceward_outbox_headers BEFORE INSERT ON onceward_outbox WHEN NEW.headers <> '[]'
BEGIN
    SELECT RAISE(ABORT, 'headers is to be a JSON array of pairs: a name, and a text or {"hex": "00ff"}')
    WHERE coalesce(json_type(NEW.headers), '') <> 'array' OR EXISTS (
        SELECT 1 FROM json_each(NEW.headers) AS pair
        WHERE pair.type <> 'array'
           OR json_array_length(pair.value) <> 2
           OR json_type(pair.value, '$[0]') <> 'text'
           OR CASE json_type(pair.value, '$[1]')
                  WHEN 'text' THEN 0
                  WHEN 'object' THEN
                      coalesce(json_type(pair.value, '$[1].hex'), '') <> 'text'
                      OR length(json_extract(pair.value, '$[1].hex')) % 2 <> 0
                      OR json_extract(pair.value, '$[1].hex') GLOB '*[^0-9a-f]*'
                  ELSE 1
              END);
END;
