//! The start check: what the promises rest on, on the connections that a run opens.

use onceward::Error;
use onceward::store::{Advice, AdviceLevel};
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, query_scalar};

use crate::config::PgConfig;
use crate::error::store_error;
use crate::handler_pool::HandlerPool;
use crate::migrate;
use crate::operators::EQ;
use crate::schema_ownership::SchemaOwnership;
use crate::session::Sessions;

pub(crate) const CHECK: &str = "check the Postgres store";

/// Opens a connection of each pool, looks at the schema and the server's settings, and says what it found.
pub(crate) async fn check(
    config: &PgConfig,
    sessions: &Sessions,
    effects: &HandlerPool,
) -> Result<Vec<Advice>, Error> {
    let failed = |error| store_error(CHECK, error);
    let mut conn = sessions.pool.acquire().await.map_err(failed)?;
    let mut of_handlers = effects.acquire().await.map_err(failed)?;
    let version = migrate::check(&mut conn, config.schema_name()).await?;
    let ownership = SchemaOwnership::read(&mut conn, config.schema_name()).await.map_err(failed)?;
    let open_places = open_places(of_handlers.connection()).await.map_err(failed)?;
    let row = conn
        .fetch_one(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
             current_setting('fsync') = 'on', pg_is_in_recovery(), \
             current_setting('default_transaction_read_only') = 'on', \
             current_setting('full_page_writes') = 'on', current_setting('synchronous_standby_names'), \
             current_setting('server_encoding'), current_setting('lock_timeout') <> '0'",
        )
        .await
        .map_err(failed)?;
    let is_shared = shares_sessions(&mut conn, of_handlers.connection()).await.map_err(failed)?;
    conn.give_back();
    of_handlers.give_back();
    let text = |n| row.try_get::<String, _>(n).map_err(failed);
    let flag = |n| row.try_get::<bool, _>(n).map_err(failed);
    let number: i32 = row.try_get(1).map_err(failed)?;
    let (server, place, schema) = (text(0)?, config.place(), config.schema_name());
    let advice = Advice::new;
    let mut found = vec![advice(
        AdviceLevel::Ok,
        format!("Postgres {server} at {place}: schema {schema}, version {version}"),
    )];
    if number < 130_000 {
        found
            .push(advice(AdviceLevel::Error, format!("Postgres {server} is too old; 13 or later is needed")));
    }
    if flag(3)? || flag(4)? {
        found.push(advice(AdviceLevel::Error, format!("{place} is read-only; name the primary")));
    }
    found.push(if flag(2)? && flag(5)? {
        advice(
            AdviceLevel::Ok,
            "fsync and full_page_writes are on: completions survive a power cut".to_owned(),
        )
    } else {
        let text = "fsync or full_page_writes is off: a power cut loses completions; turn both on".to_owned();
        advice(AdviceLevel::Error, text)
    });
    if text(6)?.is_empty() {
        let text = "no synchronous standby: a failover may lose the last completions".to_owned();
        found.push(advice(AdviceLevel::Warning, text));
    }
    if is_shared || !flag(8)? {
        let count = sessions.pool.limit() + effects.limit() + 1;
        let text = format!(
            "a pooler at {place} shares server sessions between transactions, so that settings and prepared \
             statements get lost; use its session mode, with room for {count} sessions of each process"
        );
        found.push(advice(AdviceLevel::Error, text));
    }
    let creators = ownership.map_or_else(Vec::new, |ownership| ownership.creators);
    if !creators.is_empty() {
        let text = format!(
            "{} may create objects in schema {schema}, which workers do not need; REVOKE CREATE ON SCHEMA {schema} from it",
            creators.join(", ")
        );
        found.push(advice(AdviceLevel::Warning, text));
    }
    if !open_places.is_empty() {
        let text = format!(
            "sessions of handlers look names up in schemas where other roles may create functions and operators ({}): they \
             could have a handler's statement run theirs. REVOKE CREATE ON SCHEMA … FROM PUBLIC, or set a search_path \
             without them for the role and name schemas in statements",
            open_places.join(", ")
        );
        found.push(advice(AdviceLevel::Warning, text));
    }
    let encoding = text(7)?;
    if !matches!(&*encoding, "UTF8" | "SQL_ASCII") {
        let text = format!(
            "the database is in {encoding}: texts of errors are kept in ASCII, and messages with other characters than \
             that encoding has cannot be passed to it as text"
        );
        found.push(advice(AdviceLevel::Warning, text));
    }
    Ok(found)
}

/// Whether a session on `one` is still the same after `other` was in a transaction: a pooler may give its server's session
/// away in between.
async fn shares_sessions(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    const PID: &str = "SELECT pg_catalog.pg_backend_pid()";
    let first: i32 = query_scalar(PID).fetch_one(&mut *one).await?;
    other.execute("BEGIN").await?;
    let asked = async {
        let of_other: i32 = query_scalar(PID).fetch_one(&mut *other).await?;
        let again: i32 = query_scalar(PID).fetch_one(&mut *one).await?;
        Ok(of_other == first || again != first)
    };
    let shared = asked.await;
    other.execute("ROLLBACK").await?;
    shared
}

/// Schemas of the session's `search_path` in which others may create: any role, or one that is neither this one, nor a
/// superuser, nor a member of the schema's owner.
async fn open_places(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
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
