-- What the functions name is looked up in pg_catalog, whatever the session that calls them has in its search_path.
ALTER FUNCTION "@schema@".outbox_wake() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION "@schema@".outbox_headers() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION "@schema@".occupy_free(bigint, bytea[]) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION "@schema@".complete_inbox(bigint, bytea, bytea, bigint, bigint, bytea)
    SET search_path = pg_catalog, pg_temp;

-- The row that the one worker locks that removes expired keys. Advisory locks are open to all: any role may hold one for ever.
INSERT INTO "@schema@".meta (name, value) VALUES ('purge', 0);

-- Whose turn it is to write an order key, by its hash: a row is locked from the first message under that key to the end of the
-- transaction. Rows are added as needed, at most 2^20, and stay; so none is ever updated or vanishes under a snapshot. Only
-- the owner has a right on them.
CREATE TABLE "@schema@".outbox_turns (
    turn bigint NOT NULL PRIMARY KEY
);

-- The number is drawn in the turn of the order key, so that numbers of one order key are in the order of commits, and nothing
-- appears before what has been sent already.
--
-- It runs with its owner's rights, so that a role that may insert into the outbox needs none on the turns.
CREATE OR REPLACE FUNCTION "@schema@".outbox_number() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    mine bigint;
BEGIN
    -- As the trigger of a stranger's table it would handle types and values of theirs with the owner's rights.
    IF TG_RELID <> '"@schema@".outbox'::regclass::oid THEN
        RAISE EXCEPTION 'this function is for the table outbox of its own schema' USING ERRCODE = '42501';
    END IF;
    IF NEW.order_key IS NOT NULL THEN
        mine := hashtextextended(encode(NEW.order_key, 'hex'), 11) & 1048575;
        PERFORM 1 FROM "@schema@".outbox_turns WHERE turn = mine FOR UPDATE;
        IF NOT FOUND THEN
            -- Waits for another transaction that is about to insert it.
            INSERT INTO "@schema@".outbox_turns (turn) VALUES (mine) ON CONFLICT DO NOTHING;
            PERFORM 1 FROM "@schema@".outbox_turns WHERE turn = mine FOR UPDATE;
        END IF;
    END IF;
    NEW.seq := nextval('"@schema@".outbox_seq');
    NEW.written_at := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    NEW.next_at := NEW.written_at;
    NEW.published_at := NULL;
    RETURN NEW;
END
$function$;

-- A role that may execute it could make it the trigger of a table of its own.
REVOKE ALL ON FUNCTION "@schema@".outbox_number() FROM PUBLIC;
