//! Opens the transaction of a handler, and commits it with the completion of its claim.

use std::time::Duration;

use onceward::store::transition::micros;
use onceward::store::{Commit, CompleteRequest};
use onceward::{Error, ErrorKind, Scope};
use sqlx::postgres::{PgConnection, PgTransactionManager};
use sqlx::{AssertSqlSafe, SqlSafeStr, query, query_scalar, raw_sql};
use sqlx_core::transaction::TransactionManager;

use crate::connection::PgConn;
use crate::error::{code, is_lost, store_error};
use crate::handler_pool::HandlerPool;
use crate::operators::{EQ, GT, PLUS};
use crate::row::{NOW, integer};

pub(crate) const BEGIN: &str = "open a transaction";
pub(crate) const COMMIT: &str = "commit the effect and its completion";

/// SQLSTATEs raised by `complete_inbox`: the claim is not held; the transaction is not the one begun for the handler.
const NOT_HELD: &str = "OW001";
const NOT_OPEN: &str = "OW002";

/// Begins the transaction of a handler. The setting is local to the transaction, so that one which the handler ended is detected.
pub(crate) const BEGIN_SQL: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL onceward.inbox = 'open'";

/// Opens a transaction by `sql`, through sqlx's transaction counter, so that one which the handler opens is a savepoint. Lost
/// connections, such as idle ones after a restart of the server, are replaced.
///
/// # Cancel safety
/// A dropped call closes the connection.
pub(crate) async fn begin(pool: &HandlerPool, sql: &'static str) -> Result<PgConn, Error> {
    let failed = |error| store_error(BEGIN, error);
    let mut left = pool.limit();
    loop {
        let mut open = PgConn::of(pool.acquire().await.map_err(failed)?);
        match PgTransactionManager::begin(open.connection(), Some(sql.into_sql_str())).await {
            Ok(()) => return Ok(open),
            Err(error) if is_lost(&error) && left > 0 => left -= 1,
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Writes the completion and commits, in one message: the server executes the COMMIT only if the function before it has found
/// the claim.
///
/// # Cancel safety
/// A dropped call closes the connection, and the outcome is unknown.
pub(crate) async fn commit(
    schema: &str,
    mut open: PgConn,
    scope: i64,
    request: &CompleteRequest,
    patience: Duration,
) -> Result<Commit, Error> {
    no_nested(open.connection())?;
    let CompleteRequest { lease, ttl, .. } = request;
    let bytes = |hex: String| format!("pg_catalog.decode('{hex}', 'hex')");
    let sql = format!(
        "SELECT {schema}.complete_inbox({scope}::bigint, {}, {}, {}::bigint, {}::bigint, {}); COMMIT; BEGIN",
        bytes(lease.key.to_string()),
        bytes(lease.owner.to_hex()),
        integer(lease.fence),
        integer(micros(*ttl)),
        request
            .stored_result()
            .map_or_else(|| "NULL::pg_catalog.bytea".to_owned(), |result| bytes(format!("{result:x}"))),
    );
    open.commits(patience);
    let conn = open.connection();
    let outcome = raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await;
    open.committed();
    match outcome {
        Ok(_) => {
            // sqlx considers the transaction open until its own command ends it. The empty one after the COMMIT is there for that:
            // it is rolled back by the next command, as the connection returns to its pool.
            PgTransactionManager::start_rollback(open.connection());
            open.give_back();
            Ok(Commit::Committed)
        }
        Err(error) => match code(&error).as_deref() {
            Some(NOT_HELD) => {
                open.end().await;
                Ok(Commit::Fenced)
            }
            Some(NOT_OPEN) => Err(ended_by_handler()),
            _ => Err(store_error(COMMIT, error)),
        },
    }
}

/// Checks that the handler has left the transaction open and not nested, and makes its commit wait for the disk.
pub(crate) async fn end_of_effect(conn: &mut PgConnection) -> Result<(), Error> {
    no_nested(conn)?;
    still_open(conn).await
}

pub(crate) fn no_nested(conn: &PgConnection) -> Result<(), Error> {
    if PgTransactionManager::get_transaction_depth(conn) == 1 {
        return Ok(());
    }
    let context = "the handler left a nested transaction open; commit it or drop it before returning";
    Err(Error::new(ErrorKind::Internal, COMMIT, context))
}

async fn still_open(conn: &mut PgConnection) -> Result<(), Error> {
    let ask = query_scalar(AssertSqlSafe(format!("SELECT {IS_OPEN} AND {IS_DURABLE}"))).fetch_one(conn).await;
    if ask.map_err(|error| store_error(COMMIT, error))? { Ok(()) } else { Err(ended_by_handler()) }
}

fn ended_by_handler() -> Error {
    let context =
        "the handler ended the transaction itself (COMMIT or ROLLBACK as SQL); leave that to the pipeline";
    Error::new(ErrorKind::Internal, COMMIT, context)
}

/// Writes the fenced completion as the transaction's last statement. False: the claim is no longer held.
pub(crate) async fn complete(
    schema: &str,
    conn: &mut PgConnection,
    scope: &Scope,
    request: &CompleteRequest,
) -> Result<bool, Error> {
    let sql = format!(
        "UPDATE {schema}.keys SET state = 4, started = false, lease_until = 0, written_at = at.now, ttl = $1, \
         expires_at = at.now {PLUS} $1, reason = NULL, error = NULL, result = $2 \
         FROM (SELECT {NOW} AS now OFFSET 0) AS at \
         WHERE scope {EQ} (SELECT id FROM {schema}.scopes WHERE name {EQ} $3) AND key {EQ} $4 \
           AND state {EQ} 1 AND owner {EQ} $5 AND fence {EQ} $6 AND expires_at {GT} at.now AND {IS_OPEN}"
    );
    let written = query(AssertSqlSafe(sql))
        .bind(integer(micros(request.ttl)))
        .bind(request.stored_result().as_deref())
        .bind(scope.as_str())
        .bind(request.lease.key.as_bytes().as_slice())
        .bind(request.lease.owner.as_bytes().as_slice())
        .bind(integer(request.lease.fence))
        .execute(&mut *conn)
        .await
        .map_err(|error| store_error(COMMIT, error))?;
    if written.rows_affected() == 1 {
        return Ok(true);
    }
    still_open(conn).await.map(|()| false)
}

/// SQL that is true in the transaction begun for the handler.
pub(crate) const IS_OPEN: &str =
    "coalesce(pg_catalog.current_setting('onceward.inbox', true), '') OPERATOR(pg_catalog.=) 'open'";

/// SQL that makes the commit wait for the disk; always true.
pub(crate) const IS_DURABLE: &str =
    "pg_catalog.set_config('synchronous_commit', 'on', true) OPERATOR(pg_catalog.=) 'on'";
