//! Opens the transaction of a handler, and commits it with the completion of its claim.

use onceward::store::transition::micros;
use onceward::store::{Commit, CompleteRequest, KeyState, SharedCommit};
use onceward::{Error, ErrorKind, Scope};
use sqlx::sqlite::SqliteTransactionManager;
use sqlx::{Connection as _, Executor, SqlSafeStr, query};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::OwnedMutexGuard;

use crate::error::store_error;
use crate::row::integer;
use crate::writer::{Writer, WriterConnection};

const BEGIN: &str = "open a transaction";
const COMMIT: &str = "commit the effect and its completion";
const UNDO: &str = "undo an effect";

/// An open transaction of the store's writer. While it is open, other writes of this process and of others wait. Dropping it rolls
/// it back.
pub struct SqliteConn {
    /// `None` once it is committed or rolled back.
    pub(super) slot: Option<OwnedMutexGuard<WriterConnection>>,
}

impl SqliteConn {
    pub(super) fn open(&mut self) -> Result<&mut WriterConnection, Error> {
        let ended = || Error::new(ErrorKind::Internal, COMMIT, "the transaction has ended already");
        self.slot.as_deref_mut().ok_or_else(ended)
    }
}

impl std::fmt::Debug for SqliteConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteConn").field("open", &self.slot.is_some()).finish()
    }
}

impl Drop for SqliteConn {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        match tokio::runtime::Handle::try_current() {
            // The connection is released after the rollback.
            Ok(runtime) => drop(runtime.spawn(async move { end(&mut slot).await })),
            // Closing the connection rolls back, too.
            Err(_) => slot.abandon(),
        }
    }
}

pub(super) async fn begin(mut slot: OwnedMutexGuard<WriterConnection>) -> Result<SqliteConn, Error> {
    let failed = |error| store_error(BEGIN, error);
    slot.set_unfinished(true);
    let conn = slot.conn().await.map_err(failed)?;
    // Through sqlx's transaction counter, so that one which the handler opens is a savepoint.
    SqliteTransactionManager::begin(conn, Some("BEGIN IMMEDIATE".into_sql_str())).await.map_err(failed)?;
    let mut conn = SqliteConn { slot: Some(slot) };
    // It ends with the transaction, so that a handler which ended that is detected.
    if let Some(open) = conn.slot.as_mut().and_then(|slot| slot.opened()) {
        open.execute("SAVEPOINT onceward_effect").await.map_err(failed)?;
    }
    Ok(conn)
}

pub(super) async fn commit(
    writer: Writer,
    mut conn: SqliteConn,
    scope: Scope,
    request: CompleteRequest,
) -> Result<Commit, Error> {
    let Some(mut slot) = conn.slot.take() else {
        return Err(Error::new(ErrorKind::Internal, COMMIT, "the transaction has ended already"));
    };
    match complete(&writer, &mut slot, &scope, &request).await {
        Ok(Commit::Committed) => {}
        Ok(Commit::Fenced) => {
            end(&mut slot).await;
            return Ok(Commit::Fenced);
        }
        Err(error) => {
            end(&mut slot).await;
            return Err(error);
        }
    }
    finish(&mut slot).await?;
    Ok(Commit::Committed)
}

/// As [`commit`], for several claims.
pub(super) async fn commit_shared(
    writer: Writer,
    mut conn: SqliteConn,
    scope: Scope,
    requests: Vec<CompleteRequest>,
) -> Result<SharedCommit, Error> {
    let Some(mut slot) = conn.slot.take() else {
        return Err(Error::new(ErrorKind::Internal, COMMIT, "the transaction has ended already"));
    };
    let completed = async {
        release(&mut slot).await?;
        for request in &requests {
            if write(&writer, &mut slot, &scope, request).await? == Commit::Fenced {
                return Ok(SharedCommit::RolledBack);
            }
        }
        Ok(SharedCommit::Committed)
    };
    let completed = completed.await;
    if !matches!(completed, Ok(SharedCommit::Committed)) {
        end(&mut slot).await;
        return completed;
    }
    finish(&mut slot).await?;
    completed
}

/// Commits the transaction.
async fn finish(slot: &mut WriterConnection) -> Result<(), Error> {
    let conn = slot.conn().await.map_err(|error| store_error(COMMIT, error))?;
    if let Err(error) = SqliteTransactionManager::commit(conn).await {
        // The outcome is unknown; no transaction may stay open.
        slot.reset().await;
        return Err(store_error(COMMIT, error));
    }
    slot.set_unfinished(false);
    Ok(())
}

/// Writes the fenced completion as the transaction's last statement.
async fn complete(
    writer: &Writer,
    slot: &mut WriterConnection,
    scope: &Scope,
    request: &CompleteRequest,
) -> Result<Commit, Error> {
    release(slot).await?;
    write(writer, slot, scope, request).await
}

/// Checks that the handler has left the transaction open and not nested, and releases its savepoint.
async fn release(slot: &mut WriterConnection) -> Result<(), Error> {
    next(slot, "RELEASE onceward_effect").await
}

/// As [`release`], by `statement`, which begins with the release.
pub(super) async fn next(slot: &mut WriterConnection, statement: &'static str) -> Result<(), Error> {
    let failed = |error| store_error(COMMIT, error);
    let conn = slot.conn().await.map_err(failed)?;
    // A nested transaction that the handler dropped is rolled back by a command that may still be queued.
    conn.ping().await.map_err(failed)?;
    if SqliteTransactionManager::get_transaction_depth(conn) != 1 {
        let context = "the handler left a nested transaction open; commit it or drop it before returning";
        return Err(Error::new(ErrorKind::Internal, COMMIT, context));
    }
    if let Err(error) = conn.execute(statement).await {
        let context = "the handler ended the transaction itself (COMMIT or ROLLBACK as SQL, or a conflict clause that \
                       rolls back); leave that to the pipeline";
        return Err(Error::new(ErrorKind::Internal, COMMIT, context).with_source(error));
    }
    Ok(())
}

/// Rolls back to the savepoint, which is kept.
pub(super) async fn undo(slot: &mut WriterConnection) -> Result<(), Error> {
    let failed = |error| store_error(UNDO, error);
    let conn = slot.conn().await.map_err(failed)?;
    conn.ping().await.map_err(failed)?;
    while SqliteTransactionManager::get_transaction_depth(conn) > 1 {
        SqliteTransactionManager::rollback(conn).await.map_err(failed)?;
    }
    conn.execute("ROLLBACK TO onceward_effect").await.map(drop).map_err(failed)
}

/// Writes the completion in the open transaction.
async fn write(
    writer: &Writer,
    slot: &mut WriterConnection,
    scope: &Scope,
    request: &CompleteRequest,
) -> Result<Commit, Error> {
    let failed = |error| store_error(COMMIT, error);
    let conn = slot.conn().await.map_err(failed)?;
    let now = writer.time(conn).await.map_err(failed)?;
    let ttl = micros(request.ttl);
    let written = query(
        "UPDATE onceward_keys SET state = ?, started = 0, lease_until = 0, written_at = ?, ttl = ?, expires_at = ?, \
         reason = NULL, error = NULL, result = ? \
         WHERE scope = (SELECT id FROM onceward_scopes WHERE name = ?) AND key = ? \
           AND state = ? AND owner = ? AND fence = ? AND expires_at > ?",
    )
    .bind(i64::from(KeyState::Completed.code()))
    .bind(integer(now))
    .bind(integer(ttl))
    .bind(integer(now.saturating_add(ttl)))
    .bind(request.stored_result().as_deref())
    .bind(scope.as_str())
    .bind(request.lease.key.as_bytes().as_slice())
    .bind(i64::from(KeyState::Pending.code()))
    .bind(request.lease.owner.as_bytes().as_slice())
    .bind(integer(request.lease.fence))
    .bind(integer(now))
    .execute(conn)
    .await
    .map_err(failed)?;
    Ok(if written.rows_affected() == 1 { Commit::Committed } else { Commit::Fenced })
}

/// Rolls back all nested transactions; if that fails, closes the connection, which has the same effect.
pub(super) async fn end(slot: &mut WriterConnection) {
    let Some(conn) = slot.opened() else { return };
    let mut outcome = conn.ping().await;
    while outcome.is_ok() && SqliteTransactionManager::get_transaction_depth(conn) > 0 {
        outcome = SqliteTransactionManager::rollback(conn).await;
    }
    match outcome {
        Ok(()) => slot.set_unfinished(false),
        Err(_) => slot.reset().await,
    }
}
