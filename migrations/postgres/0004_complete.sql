-- For handlers in any language that write to this database: the completion as a part of their own transaction.
--
--     BEGIN; ...effects...; SELECT "@schema@".complete(token); COMMIT
--
-- The token says which claim the handler runs under: key, owner (16 bytes each) and fence, in hexadecimal. A claim that is
-- no longer held, or was completed with this token before, is an error, so that the transaction cannot commit. It must be
-- the last statement before the commit: the row it writes stays locked until then, and the claim cannot be renewed.
--
-- It runs with its owner's rights: a role that may execute it, and has a token, needs no right on the tables.
CREATE FUNCTION "@schema@".complete(token text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    moment bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
BEGIN
    IF token IS NULL OR token !~ '^[0-9a-f]{80}$' THEN
        RAISE EXCEPTION 'this is no claim token; pass on the one that the handler was given' USING ERRCODE = '22023';
    END IF;
    -- The effect is reported as done once this commits: it must be on disk, whatever the session is set to.
    PERFORM set_config('synchronous_commit', 'on', true);
    UPDATE "@schema@".keys AS record
    SET state = 4, started = false, lease_until = 0, written_at = moment, expires_at = moment + record.ttl,
        reason = NULL, error = NULL, result = NULL
    FROM "@schema@".scopes
    WHERE record.scope = scopes.id
      AND record.key = decode(substr(token, 1, 32), 'hex')
      AND record.owner = decode(substr(token, 33, 32), 'hex')
      AND record.fence = ('x' || substr(token, 65, 16))::bit(64)::bigint
      AND record.state = 1
      AND record.expires_at > moment;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the claim of this token is not held (any more); nothing may be committed under it'
            USING ERRCODE = 'OW001', HINT = 'Roll back: another delivery of the message runs, ran, or will run.';
    END IF;
END
$function$;

-- By default every role may execute a function.
REVOKE ALL ON FUNCTION "@schema@".complete(text) FROM PUBLIC;
