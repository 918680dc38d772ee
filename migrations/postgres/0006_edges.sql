-- Rows for keys that have none, so that they can be locked; keys for which another transaction has a row that is not
-- committed yet are passed over, each after a moment. Without it a batch would have to be tried key by key.
--
-- It runs with the caller's rights, who needs those of a worker on the tables anyway.
CREATE FUNCTION "@schema@".occupy_free(scope_id bigint, wanted bytea[]) RETURNS void
LANGUAGE plpgsql AS $function$
DECLARE
    one bytea;
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '5', true);
    FOREACH one IN ARRAY wanted LOOP
        BEGIN
            INSERT INTO "@schema@".keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, attempts,
                lost, generation, state, started, key, owner)
            VALUES (scope_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, false, one,
                pg_catalog.decode('00000000000000000000000000000000', 'hex'))
            ON CONFLICT DO NOTHING;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
END
$function$;

-- What no relay can publish is refused: a header's name or value that is NULL, arrays that are no plain lists. By a trigger,
-- since a CHECK would also refuse to note a failure of such a row that is there already.
CREATE FUNCTION "@schema@".outbox_headers() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    IF pg_catalog.array_ndims(NEW.header_names) > 1 OR pg_catalog.array_ndims(NEW.header_values) > 1 THEN
        RAISE EXCEPTION 'header_names and header_values must be plain lists' USING ERRCODE = '23514';
    END IF;
    IF pg_catalog.array_position(NEW.header_names, NULL) IS NOT NULL
        OR pg_catalog.array_position(NEW.header_values, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'header_names or header_values holds NULL; leave that header out' USING ERRCODE = '23514';
    END IF;
    RETURN NEW;
END
$function$;

CREATE TRIGGER outbox_headers BEFORE INSERT OR UPDATE OF header_names, header_values ON "@schema@".outbox
    FOR EACH ROW EXECUTE FUNCTION "@schema@".outbox_headers();
