//! Verifies the owner of the schema, before anything in it is used.
//!
//! The owner of a table may give it triggers, rules and defaults, which run with the rights of the role that writes to it;
//! a view runs its owner's code with the rights of the role that reads it. So the schema and everything in it must belong to
//! one party: the *authority*, which is the owner of the table `migrations` (or of the schema, until that table exists),
//! superusers, and members of the authority. A role that migrates, or is a superuser, must in turn be trusted by that party.

use onceward::{Error, ErrorKind};
use sqlx::{PgConnection, Row, query};

/// Foreign objects named in an error at most.
const MAX_NAMED: usize = 5;

/// Reads ownership from the catalogue. It runs with a `search_path` of `pg_catalog`.
const INSPECT: &str = "\
    WITH place AS (SELECT n.oid, n.nspacl, CASE pg_get_userbyid(n.nspowner) WHEN 'pg_database_owner' \
            THEN (SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname = current_database()) \
            ELSE n.nspowner END AS nspowner \
        FROM pg_catalog.pg_namespace n WHERE n.nspname = $1), \
    authority AS (SELECT coalesce((SELECT c.relowner FROM pg_catalog.pg_class c \
        WHERE c.relnamespace = place.oid AND c.relname = 'migrations'), place.nspowner) AS id, place.nspowner AS owner FROM place), \
    trusted AS (SELECT r.oid AS id FROM pg_catalog.pg_roles r, authority a \
        WHERE pg_has_role(r.oid, a.id, 'MEMBER') \
           OR (pg_has_role(r.oid, a.owner, 'MEMBER') \
               AND ((SELECT o.rolsuper FROM pg_catalog.pg_roles o WHERE o.oid = a.owner) \
                 OR (pg_has_role(a.id, a.owner, 'MEMBER') \
                     AND NOT (SELECT o.rolsuper FROM pg_catalog.pg_roles o WHERE o.oid = a.id)))) ), \
    tables AS (SELECT c.oid, c.relname, c.relkind <> 'r' OR c.relrowsecurity AS is_odd, \
            c.relname IN ('migrations', 'meta', 'scopes', 'keys', 'checkpoints', 'audit', 'outbox', 'outbox_turns', \
                'processed_offsets') AS is_ours FROM pg_catalog.pg_class c, place \
        WHERE c.relnamespace = place.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')), \
    objects AS (SELECT 'the schema' AS what, place.nspowner AS owner FROM place \
        UNION ALL SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' WHEN 'v' THEN 'view ' ELSE 'table ' END || c.relname, c.relowner \
            FROM pg_catalog.pg_class c, place WHERE c.relnamespace = place.oid AND c.relkind NOT IN ('i', 'I') \
        UNION ALL SELECT 'function ' || p.proname, p.proowner FROM pg_catalog.pg_proc p, place WHERE p.pronamespace = place.oid \
        UNION ALL SELECT 'operator ' || o.oprname, o.oprowner FROM pg_catalog.pg_operator o, place \
            WHERE o.oprnamespace = place.oid \
        UNION ALL SELECT 'type ' || t.typname, t.typowner FROM pg_catalog.pg_type t, place \
            WHERE t.typnamespace = place.oid AND t.typrelid = 0 AND t.typcategory <> 'A'), \
    strange AS (SELECT o.what || ' is owned by ' || pg_get_userbyid(o.owner) AS what FROM objects o \
            WHERE o.owner NOT IN (SELECT id FROM trusted) \
        UNION ALL SELECT 'table ' || tables.relname || ' has a trigger ' || t.tgname \
            FROM tables JOIN pg_catalog.pg_trigger t ON t.tgrelid = tables.oid \
            JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid, place \
            WHERE NOT t.tgisinternal AND NOT (p.proowner IN (SELECT id FROM trusted) \
                AND (NOT tables.is_ours OR (p.pronamespace = place.oid AND p.proname = t.tgname AND (tables.relname = 'outbox' \
                        OR p.proname NOT IN ('outbox_number', 'outbox_wake', 'outbox_headers'))))) \
        UNION ALL SELECT tables.relname || ' is no ordinary table, or has row security' \
            FROM tables WHERE tables.is_odd AND tables.is_ours \
        UNION ALL SELECT 'table ' || tables.relname || ' has a rule ' || r.rulename \
            FROM tables JOIN pg_catalog.pg_rewrite r ON r.ev_class = tables.oid WHERE r.rulename <> '_RETURN' \
        UNION ALL SELECT 'table ' || tables.relname || ' has a foreign key of ' || k.conrelid::regclass \
            FROM tables JOIN pg_catalog.pg_constraint k ON k.confrelid = tables.oid WHERE k.contype = 'f' \
                AND k.conrelid NOT IN (SELECT oid FROM tables)) \
    SELECT me.rolname, me.rolsuper, pg_get_userbyid(a.owner), pg_get_userbyid(a.id), \
        (SELECT bool_and(o.oid = me.oid OR o.rolsuper OR (NOT me.rolsuper AND pg_has_role(me.oid, o.oid, 'USAGE'))) \
            FROM pg_catalog.pg_roles o WHERE o.oid IN (a.id, a.owner)), \
        ARRAY(SELECT what::text FROM strange ORDER BY what), \
        ARRAY(SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(acl.grantee)::text END \
            FROM place, aclexplode(place.nspacl) AS acl \
            WHERE acl.privilege_type = 'CREATE' AND acl.grantee NOT IN (SELECT id FROM trusted)) \
    FROM authority a, pg_catalog.pg_roles me WHERE me.rolname = current_user";

/// The owners of a schema and of the objects in it.
#[derive(Debug)]
pub(crate) struct SchemaOwnership {
    /// The role of this connection, and whether it is a superuser.
    role: String,
    is_superuser: bool,
    /// The owners of the schema and of the table of migrations.
    owner: String,
    authority: String,
    /// This role has the rights of both owners, or they are superusers.
    is_trusted: bool,
    /// Objects that belong to others, or run their code.
    strange: Vec<String>,
    /// Other roles that may create objects in the schema.
    pub(crate) creators: Vec<String>,
}

impl SchemaOwnership {
    /// Reads the ownership of `schema`; `None` if it does not exist. Only the catalogue is read, which needs no right and runs
    /// no code of other roles. `conn` is one of the store's own connections.
    pub(crate) async fn read(conn: &mut PgConnection, schema: &str) -> Result<Option<Self>, sqlx::Error> {
        let Some(row) = query(INSPECT).bind(schema).fetch_optional(conn).await? else { return Ok(None) };
        Ok(Some(Self {
            role: row.try_get(0)?,
            is_superuser: row.try_get(1)?,
            owner: row.try_get(2)?,
            authority: row.try_get(3)?,
            is_trusted: row.try_get(4)?,
            strange: row.try_get(5)?,
            creators: row.try_get(6)?,
        }))
    }

    /// Refuses a schema that contains objects of other parties; for a superuser also a schema owned by another role.
    pub(crate) fn refuse_strange(&self, operation: &'static str, schema: &str) -> Result<(), Error> {
        if self.is_superuser {
            self.refuse_untrusted(operation, schema)?;
        }
        if self.strange.is_empty() {
            return Ok(());
        }
        let more = match self.strange.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let named = self.strange.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
        let context = format!(
            "schema {schema} of {} contains objects of other owners: {named}{more}. Their code would run with the rights of \
             every role that uses the store. Find out how they got there; then drop them, or change their owner (ALTER … OWNER TO {})",
            self.authority, self.authority
        );
        Err(Error::new(ErrorKind::Config, operation, context))
    }

    /// Refuses a schema whose owner could run code with the rights of this role.
    pub(crate) fn refuse_untrusted(&self, operation: &'static str, schema: &str) -> Result<(), Error> {
        if self.is_trusted {
            return Ok(());
        }
        let Self { role, owner, authority, .. } = self;
        let owners = if owner == authority {
            owner.clone()
        } else {
            format!("{owner} (its table migrations by {authority})")
        };
        let context = format!(
            "schema {schema} is owned by {owners}, and this role is {role}, with whose rights its code would run; connect as its \
             owner, or, if it should have another owner, inspect the schema and drop it, or change the owner of it and of \
             everything in it (ALTER SCHEMA … OWNER TO)"
        );
        Err(Error::new(ErrorKind::Config, operation, context))
    }
}
