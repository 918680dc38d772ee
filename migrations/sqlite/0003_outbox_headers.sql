-- The rule for headers holds for rows that are changed, too; and strictly: SQLite's own functions also take JSON5, which the
-- relay does not read.
DROP TRIGGER onceward_outbox_headers;

CREATE TRIGGER onceward_outbox_headers BEFORE INSERT ON onceward_outbox WHEN NEW.headers <> '[]'
BEGIN
    SELECT RAISE(ABORT, 'headers is to be a JSON array of pairs: a name, and a text or {"hex": "00ff"}')
    WHERE CASE WHEN json_valid(NEW.headers) THEN coalesce(json_type(NEW.headers), '') <> 'array' OR EXISTS (
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
              END) ELSE 1 END;
END;

CREATE TRIGGER onceward_outbox_headers_changed BEFORE UPDATE OF headers ON onceward_outbox WHEN NEW.headers <> '[]'
BEGIN
    SELECT RAISE(ABORT, 'headers is to be a JSON array of pairs: a name, and a text or {"hex": "00ff"}')
    WHERE CASE WHEN json_valid(NEW.headers) THEN coalesce(json_type(NEW.headers), '') <> 'array' OR EXISTS (
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
              END) ELSE 1 END;
END;
