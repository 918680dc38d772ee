//! Checks at startup the server settings that the guarantees depend on, on the connections that a run opens.

use onceward::Error;
use onceward::store::Advice;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, query_scalar};

use crate::connector::Connector;
use crate::error::store_error;
use crate::handler_pool::HandlerPool;
use crate::migrate;
use crate::operators::EQ;
use crate::schema_ownership::SchemaOwnership;
use crate::session::Sessions;

pub(crate) const CHECK: &str = "check the Postgres store";

/// Opens a connection of each pool, checks the schema and the server's settings, and reports the findings.
pub(crate) async fn check(
    connector: &Connector,
    sessions: &Sessions,
    handler_pool: &HandlerPool,
) -> Result<Vec<Advice>, Error> {
    let failed = |error| store_error(CHECK, error);
    let (address, schema) = (connector.address(), connector.schema());
    let mut conn = sessions.pool.acquire().await.map_err(failed)?;
    let mut handler_conn = handler_pool.acquire().await.map_err(failed)?;
    let version = migrate::check(&mut conn, schema).await?;
    let ownership = SchemaOwnership::read(&mut conn, schema).await.map_err(failed)?;
    let writable_schemas = writable_schemas(handler_conn.connection()).await.map_err(failed)?;
    let server = ServerSettings::read(&mut conn).await.map_err(failed)?;
    let is_shared = shares_sessions(&mut conn, handler_conn.connection()).await.map_err(failed)?;
    conn.give_back();
    handler_conn.give_back();
    let text = format!("Postgres {} at {address}: schema {schema}, version {version}", server.version);
    let mut found = vec![Advice::ok(text)];
    found.extend(server.advice(&address));
    if is_shared || !server.has_lock_timeout {
        let count = sessions.pool.limit() + handler_pool.limit() + 1;
        let text = format!(
            "a pooler at {address} shares server sessions between transactions, so that settings and prepared \
             statements get lost; use its session mode, with room for {count} sessions of each process"
        );
        found.push(Advice::error("postgres-pooler-shares-sessions", text));
    }
    let creators = ownership.map_or_else(Vec::new, |ownership| ownership.creators);
    if !creators.is_empty() {
        let text = format!(
            "{} may create objects in schema {schema}, which workers do not need; REVOKE CREATE ON SCHEMA {schema} from it",
            creators.join(", ")
        );
        found.push(Advice::warning("postgres-schema-creators", text));
    }
    if !writable_schemas.is_empty() {
        let text = format!(
            "sessions of handlers resolve names in schemas where other roles may create functions and operators ({}): a \
             handler's statement could run theirs. REVOKE CREATE ON SCHEMA … FROM PUBLIC, or set a search_path \
             without them for the role and name schemas in statements",
            writable_schemas.join(", ")
        );
        found.push(Advice::warning("postgres-search-path-writable", text));
    }
    Ok(found)
}

/// The settings of the server that the guarantees depend on.
struct ServerSettings {
    version: String,
    version_number: i32,
    /// `fsync` and `full_page_writes` are on.
    is_durable: bool,
    is_read_only: bool,
    has_synchronous_standby: bool,
    /// A standby is connected, or has a slot. Subscribers of logical replication do not count.
    has_standby: bool,
    encoding: String,
    /// The session has the `lock_timeout` that was set after connecting.
    has_lock_timeout: bool,
}

impl ServerSettings {
    async fn read(conn: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
             current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on', \
             pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on', \
             current_setting('synchronous_standby_names') <> '', \
             EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical') \
               OR (SELECT count(*) FROM pg_catalog.pg_stat_replication) \
                 > (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' AND active), \
             current_setting('server_encoding'), current_setting('lock_timeout') <> '0'";
        let row = conn.fetch_one(sql).await?;
        Ok(Self {
            version: row.try_get(0)?,
            version_number: row.try_get(1)?,
            is_durable: row.try_get(2)?,
            is_read_only: row.try_get(3)?,
            has_synchronous_standby: row.try_get(4)?,
            has_standby: row.try_get(5)?,
            encoding: row.try_get(6)?,
            has_lock_timeout: row.try_get(7)?,
        })
    }

    fn advice(&self, address: &str) -> Vec<Advice> {
        let mut found = Vec::new();
        if self.version_number < 130_000 {
            let text = format!("Postgres {} is too old; 13 or later is needed", self.version);
            found.push(Advice::error("postgres-too-old", text));
        }
        if self.is_read_only {
            let text = format!("{address} is read-only; name the primary");
            found.push(Advice::error("postgres-read-only", text));
        }
        found.push(if self.is_durable {
            let text = "fsync and full_page_writes are on: completions survive a power cut";
            Advice::ok(text)
        } else {
            let text = "fsync or full_page_writes is off: a power cut loses completions; turn both on";
            Advice::error("postgres-fsync-off", text)
        });
        // One that is fed from an archive, or is stopped and has no slot, is not seen.
        if self.has_standby && !self.has_synchronous_standby {
            let text = "the standbys replicate asynchronously: a failover may lose the last completions, and their handlers run again; \
                        set synchronous_standby_names";
            found.push(Advice::warning("postgres-asynchronous-standbys", text));
        }
        if !matches!(&*self.encoding, "UTF8" | "SQL_ASCII") {
            let text = format!(
                "the database is in {}: texts of errors are kept in ASCII, and messages with other characters than \
                 that encoding has cannot be passed to it as text",
                self.encoding
            );
            found.push(Advice::warning("postgres-encoding", text));
        }
        found
    }
}

/// True if a pooler shares server sessions: if the session of `one` differs, or is that of `other`, while `other` is in a
/// transaction.
async fn shares_sessions(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    const PID: &str = "SELECT pg_catalog.pg_backend_pid()";
    let first: i32 = query_scalar(PID).fetch_one(&mut *one).await?;
    other.execute("BEGIN").await?;
    let asked = async {
        let other_pid: i32 = query_scalar(PID).fetch_one(&mut *other).await?;
        let again: i32 = query_scalar(PID).fetch_one(&mut *one).await?;
        Ok(other_pid == first || again != first)
    };
    let shared = asked.await;
    other.execute("ROLLBACK").await?;
    shared
}

/// Schemas of the session's `search_path` in which other roles may create objects: every role, or one that is neither this one,
/// nor a superuser, nor a member of the schema's owner.
async fn writable_schemas(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let sql = format!(
        "SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_namespace n \
         WHERE n.nspname {EQ} ANY (pg_catalog.current_schemas(false)) AND EXISTS (SELECT 1 \
           FROM pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS acl \
           WHERE acl.privilege_type {EQ} 'CREATE' AND (acl.grantee {EQ} 0::pg_catalog.oid OR NOT (\
             acl.grantee {EQ} (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname {EQ} current_user) \
             OR pg_catalog.pg_has_role(acl.grantee, n.nspowner, 'MEMBER')))) ORDER BY 1"
    );
    query_scalar(AssertSqlSafe(sql)).fetch_all(conn).await
}
