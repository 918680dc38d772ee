//! HandlerPool that share a transaction: each in a savepoint, all committed with their completions.

use std::time::Duration;

use onceward::Error;
use onceward::store::transition::micros;
use onceward::store::{CompleteRequest, SharedCommit};
use sqlx::postgres::{PgConnection, PgTransactionManager};
use sqlx::{AssertSqlSafe, query, raw_sql};
use sqlx_core::transaction::TransactionManager;

use crate::connection::PgConn;
use crate::error::{is_conflict, is_data, store_error};
use crate::handler_pool::HandlerPool;
use crate::operators::{BYTEAS, EQ, GT, PLUS};
use crate::row::{self, NOW};
use crate::transaction::completion::{self, COMMIT, IS_DURABLE, IS_OPEN, no_nested};

pub(crate) const KEEP: &str = "keep an effect";
pub(crate) const UNDO: &str = "undo an effect";

/// As for a single effect, with the first one's savepoint, in one message.
pub(crate) async fn begin(pool: &HandlerPool) -> Result<PgConn, Error> {
    const SQL: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL onceward.inbox = 'open'; \
                       SAVEPOINT onceward_effect";
    completion::begin(pool, SQL).await
}

/// Ends an effect's savepoint and sets the next one's. What keeps the transaction from being committed is refused here: a
/// statement that failed, though the handler says that all is well; a nested transaction that is still open.
pub(crate) async fn keep(conn: &mut PgConnection) -> Result<(), Error> {
    no_nested(conn)?;
    simple(conn, KEEP, "RELEASE SAVEPOINT onceward_effect; SAVEPOINT onceward_effect").await
}

/// Goes back to the savepoint, which stays for the next effect.
pub(crate) async fn undo(conn: &mut PgConnection) -> Result<(), Error> {
    while PgTransactionManager::get_transaction_depth(conn) > 1 {
        PgTransactionManager::rollback(conn).await.map_err(|error| store_error(UNDO, error))?;
    }
    simple(conn, UNDO, "ROLLBACK TO SAVEPOINT onceward_effect").await
}

async fn simple(conn: &mut PgConnection, operation: &'static str, sql: &'static str) -> Result<(), Error> {
    raw_sql(sql).execute(conn).await.map(drop).map_err(|error| store_error(operation, error))
}

/// Writes the completions, fenced, as the last statement, and commits. Dropped on the way, it closes the connection.
pub(crate) async fn commit(
    schema: &str,
    mut open: PgConn,
    scope: i64,
    done: &[CompleteRequest],
    patience: Duration,
) -> Result<SharedCommit, Error> {
    no_nested(open.connection())?;
    match complete(open.connection(), schema, scope, done).await {
        Ok(count) if count == done.len() as u64 => {}
        Ok(_) => {
            open.end().await;
            return Ok(SharedCommit::RolledBack);
        }
        // Not committed, for it was never asked to; the connection is closed.
        Err(error) => {
            tracing::debug!(%error, "completions could not be written together");
            return Ok(SharedCommit::RolledBack);
        }
    }
    match open.commit_plain(patience).await {
        Ok(()) => Ok(SharedCommit::Committed),
        Err(error) if is_conflict(&error) || is_data(&error) => {
            tracing::debug!(%error, "effects could not be committed together");
            Ok(SharedCommit::RolledBack)
        }
        Err(error) => Err(store_error(COMMIT, error)),
    }
}

/// How many of the claims were held, and are completed now.
async fn complete(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    done: &[CompleteRequest],
) -> Result<u64, sqlx::Error> {
    let mut sorted: Vec<_> = done.iter().collect();
    sorted.sort_unstable_by_key(|request| request.lease.key);
    // The keys stand there twice, so that they are looked up one by one, and never by a scan of the table. They are locked
    // in their order before they are written.
    let sql = format!(
        "WITH given AS MATERIALIZED (SELECT * FROM unnest($2::{BYTEAS}, $3::{BYTEAS}, $4::bigint[], $5::bigint[], $6::{BYTEAS}) \
         AS given (k, o, e, t, r)), \
         locked AS MATERIALIZED (SELECT key FROM {schema}.keys WHERE scope {EQ} $1 AND key {EQ} ANY ($2::{BYTEAS}) ORDER BY key FOR UPDATE) \
         UPDATE {schema}.keys AS keys SET state = 4, started = false, lease_until = 0, written_at = at.now, ttl = t, \
         expires_at = at.now {PLUS} t, reason = NULL, error = NULL, result = r \
         FROM (SELECT {NOW} AS now OFFSET 0) AS at, given \
         WHERE keys.scope {EQ} $1 AND keys.key {EQ} ANY (ARRAY(SELECT key FROM locked)) AND keys.key {EQ} k \
           AND keys.state {EQ} 1 AND keys.owner {EQ} o AND keys.fence {EQ} e AND keys.expires_at {GT} at.now AND {IS_OPEN} AND {IS_DURABLE}"
    );
    let written = query(AssertSqlSafe(sql))
        .bind(scope)
        .bind(row::key_bytes(sorted.iter().map(|request| &request.lease.key)))
        .bind(row::owner_bytes(sorted.iter().map(|request| &request.lease.owner)))
        .bind(row::integers(sorted.iter().map(|request| request.lease.fence)))
        .bind(row::integers(sorted.iter().map(|request| micros(request.ttl))))
        .bind(sorted.iter().map(|request| request.result.as_deref()).collect::<Vec<Option<&[u8]>>>())
        .execute(conn)
        .await?;
    Ok(written.rows_affected())
}
