-- The completion of a handler's transaction, as one call: so that it and the COMMIT behind it are one message to the server,
-- of which the second is only reached if the first found its claim.
--
-- It runs with the caller's rights, who needs those of a worker on the tables anyway.
CREATE FUNCTION "@schema@".complete_inbox(
    scope_id bigint, claimed bytea, claimed_by bytea, claimed_fence bigint, lasts bigint, answer bytea
) RETURNS void LANGUAGE plpgsql AS $function$
DECLARE
    moment bigint := (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;
BEGIN
    -- It was set together with the BEGIN, and vanishes with that transaction.
    IF pg_catalog.current_setting('onceward.inbox', true) IS DISTINCT FROM 'open' THEN
        RAISE EXCEPTION 'the transaction that was begun for the handler is no longer open' USING ERRCODE = 'OW002';
    END IF;
    -- The message is acked once this commits: it must be on disk, whatever the role, the session or the handler say.
    IF pg_catalog.current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
    END IF;
    UPDATE "@schema@".keys AS record
    SET state = 4, started = false, lease_until = 0, written_at = moment, ttl = lasts, expires_at = moment + lasts,
        reason = NULL, error = NULL, result = answer
    WHERE record.scope = scope_id
      AND record.key = claimed
      AND record.state = 1
      AND record.owner = claimed_by
      AND record.fence = claimed_fence
      AND record.expires_at > moment;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the claim of this transaction is not held (any more)' USING ERRCODE = 'OW001';
    END IF;
END
$function$;
