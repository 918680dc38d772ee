-- A schema with look-alikes of what a statement may name: a call of one of them springs the trap, which records it and then
-- fails. Belongs to the role evil.
CREATE ROLE evil LOGIN;
CREATE SCHEMA trap AUTHORIZATION evil;
GRANT USAGE ON SCHEMA trap TO PUBLIC;
SET ROLE evil;
-- A sequence, since it keeps its value when the transaction is rolled back.
CREATE SEQUENCE trap.loot;
CREATE FUNCTION trap.spring(what pg_catalog.text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM nextval('trap.loot');
    RAISE EXCEPTION 'trapped by %', what;
END $$;

DO $do$
DECLARE
    names pg_catalog.text[] := '{bool,bytea,int2,int4,int8,float8,numeric,text,name,oid,timestamptz,_int2,_int4,_int8,_text,_bytea,_bool,_name}';
    l pg_catalog.text;
    r pg_catalog.text;
    op record;
    f record;
BEGIN
    PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    -- Operators between all of these types, so that none fits better in pg_catalog.
    FOREACH l IN ARRAY names LOOP
        EXECUTE format('CREATE FUNCTION trap.only(pg_catalog.%I) RETURNS pg_catalog.%I LANGUAGE plpgsql AS
            ''BEGIN PERFORM trap.spring(''''operator on %s''''); RETURN $1; END''', l, l, l);
        FOREACH r IN ARRAY names LOOP
            EXECUTE format('CREATE FUNCTION trap.pair(pg_catalog.%I, pg_catalog.%I) RETURNS pg_catalog.%I LANGUAGE plpgsql AS
                ''BEGIN PERFORM trap.spring(''''operator on %s and %s''''); RETURN $1; END''', l, r, l, l, r);
            EXECUTE format('CREATE FUNCTION trap.test(pg_catalog.%I, pg_catalog.%I) RETURNS boolean LANGUAGE plpgsql AS
                ''BEGIN RETURN trap.spring(''''comparison of %s and %s''''); END''', l, r, l, r);
            FOR op IN SELECT DISTINCT oprname, oprresult = 'bool'::regtype AS tests FROM pg_operator
                WHERE oprkind = 'b' AND oprname IN ('=', '<>', '<', '<=', '>', '>=', '+', '-', '*', '/', '%', '||', '&&', '@>',
                    '<@', '&', '|', '#', '~', '!~', '~~', '!~~')
                  AND NOT (oprname IN ('&&', '@>', '<@', '=', '<', '<=', '>', '>=', '~', '!~', '<>') AND oprresult <> 'bool'::regtype)
                  AND NOT (oprname IN ('+', '-', '*', '/', '%', '||', '&', '|', '#') AND oprresult = 'bool'::regtype)
            LOOP
                EXECUTE format('CREATE OPERATOR trap.%s (leftarg = pg_catalog.%I, rightarg = pg_catalog.%I, function = trap.%s)',
                    op.oprname, l, r, CASE WHEN op.tests THEN 'test' ELSE 'pair' END);
            END LOOP;
        END LOOP;
        -- Domains of the types' names, which are no keywords and so looked up.
        EXECUTE format('CREATE DOMAIN trap.%I AS pg_catalog.%I CHECK (trap.spring(''type %s''))', l, l, l);
        -- What takes any type, for each of these.
        FOREACH r IN ARRAY '{count,max,min,array_agg,sum}'::pg_catalog.text[] LOOP
            EXECUTE format('CREATE AGGREGATE trap.%I (pg_catalog.%I) (sfunc = trap.pair, stype = pg_catalog.%I)', r, l, l);
        END LOOP;
        IF l LIKE '\_%' THEN
            FOREACH r IN ARRAY '{unnest,array_ndims,cardinality,array_length,array_to_json}'::pg_catalog.text[] LOOP
                EXECUTE format('CREATE FUNCTION trap.%I(pg_catalog.%I) RETURNS boolean LANGUAGE plpgsql AS
                    ''BEGIN RETURN trap.spring(''''function %s''''); END''', r, l, r);
            END LOOP;
        END IF;
    END LOOP;
    CREATE FUNCTION trap.more(bigint) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM trap.spring(''aggregate''); RETURN 0; END';
    CREATE AGGREGATE trap.count(*) (sfunc = trap.more, stype = bigint, initcond = '0');
    CREATE AGGREGATE trap.row_number(*) (sfunc = trap.more, stype = bigint, initcond = '0');
    -- Every function whose arguments have a type of their own.
    FOR f IN SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, p.prorettype::regtype AS result
        FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset
          AND p.provariadic = 0 AND p.proargmodes IS NULL
          AND NOT EXISTS (SELECT FROM unnest(p.proargtypes || p.prorettype) AS a JOIN pg_type t ON t.oid = a
              WHERE t.typtype = 'p' AND t.typname NOT IN ('void', 'record'))
          AND NOT (p.prorettype = 'record'::regtype)
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', f.proname, f.arguments, f.result,
                format('BEGIN PERFORM trap.spring(%L); %s END', 'function ' || f.proname,
                    CASE f.result WHEN 'void'::regtype THEN '' ELSE 'RETURN NULL;' END));
        EXCEPTION WHEN duplicate_function OR invalid_function_definition OR feature_not_supported THEN
            NULL;
        END;
    END LOOP;
END $do$;
RESET ROLE;
