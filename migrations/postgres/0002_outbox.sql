-- Messages that commit together with an effect, and are sent by a relay afterwards. Times are microseconds since the
-- epoch, in the server's clock.
CREATE TABLE "@schema@".outbox (
    seq           bigint  NOT NULL PRIMARY KEY, -- given by the trigger below; within an order key in the order of commits
    next_at       bigint  NOT NULL,             -- not sent before
    written_at    bigint  NOT NULL,
    published_at  bigint,                       -- when the broker had confirmed it
    attempts      integer NOT NULL DEFAULT 0,   -- that failed
    id            text    NOT NULL DEFAULT gen_random_uuid()::text,
    destination   text    NOT NULL CHECK (destination <> ''),
    order_key     bytea   CHECK (octet_length(order_key) BETWEEN 1 AND 1024),
    header_names  text[]  NOT NULL DEFAULT '{}',
    header_values bytea[] NOT NULL DEFAULT '{}',
    payload       bytea   NOT NULL,
    error         text,                         -- of the last attempt
    CHECK (cardinality(header_names) = cardinality(header_values))
);

CREATE SEQUENCE "@schema@".outbox_seq OWNED BY "@schema@".outbox.seq;

-- What waits, by order key; by time where there is none; and what can be removed.
CREATE INDEX outbox_by_order_key ON "@schema@".outbox (order_key, seq) WHERE published_at IS NULL;
CREATE INDEX outbox_by_time ON "@schema@".outbox (next_at, seq) WHERE published_at IS NULL AND order_key IS NULL;
CREATE INDEX outbox_published ON "@schema@".outbox (published_at) WHERE published_at IS NOT NULL;

-- The number is drawn under a lock of the order key, which lasts until the transaction ends: so numbers of one order key
-- are in the order of commits, and nothing appears before what has been sent already.
CREATE FUNCTION "@schema@".outbox_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.order_key IS NOT NULL THEN
        PERFORM pg_catalog.pg_advisory_xact_lock(
            pg_catalog.hashtextextended(pg_catalog.encode(NEW.order_key, 'hex'), 11));
    END IF;
    NEW.seq := pg_catalog.nextval('"@schema@".outbox_seq');
    NEW.written_at := (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;
    NEW.next_at := NEW.written_at;
    NEW.published_at := NULL;
    RETURN NEW;
END
$$;

CREATE TRIGGER outbox_number BEFORE INSERT ON "@schema@".outbox
    FOR EACH ROW EXECUTE FUNCTION "@schema@".outbox_number();

-- Wakes the relays when the transaction commits.
CREATE FUNCTION "@schema@".outbox_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('onceward_outbox', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;

CREATE TRIGGER outbox_wake AFTER INSERT ON "@schema@".outbox
    FOR EACH STATEMENT EXECUTE FUNCTION "@schema@".outbox_wake();
