//! The inbox: the effect and its completion in one transaction.

use std::ops::{Deref, DerefMut};

use async_trait::async_trait;
use onceward::store::transition::micros;
use onceward::store::{Commit, CompleteRequest, KeyState, SharedCommit, TransactionalStore};
use onceward::{Error, ErrorKind, Outgoing, Scope};
use sqlx::sqlite::{SqliteConnection, SqliteTransactionManager};
use sqlx::{Connection as _, Executor, SqlSafeStr, query};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::OwnedMutexGuard;

use crate::error::store_error;
use crate::row::integer;
use crate::store::{SqliteStore, join_task};
use crate::writer::{Writer, WriterConnection};

const BEGIN: &str = "open a transaction";
const COMMIT: &str = "commit the effect and its completion";
const UNDO: &str = "undo an effect";

/// An open transaction of the store's writer. While it lives nothing else is written by this process, and other
/// processes wait; dropped, it is rolled back.
pub struct SqliteConn {
    /// `None` once it is committed or rolled back.
    slot: Option<OwnedMutexGuard<WriterConnection>>,
}

impl SqliteConn {
    fn open(&mut self) -> Result<&mut WriterConnection, Error> {
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
            // The turn goes to the next only after the rollback.
            Ok(runtime) => drop(runtime.spawn(async move { end(&mut slot).await })),
            // Closing the connection rolls back too.
            Err(_) => slot.abandon(),
        }
    }
}

/// What a transactional handler sees of the transaction: a [`SqliteConnection`] for any query of `sqlx`.
///
/// ```no_run
/// # use onceward::{Handled, Message, tx_handler};
/// # use onceward_sqlite::{SqliteStore, SqliteTx};
/// async fn charge(_: (), message: Message, mut tx: SqliteTx<'_>) -> Handled {
///     sqlx::query("INSERT INTO charges (payload) VALUES (?)")
///         .bind(&message.payload()[..])
///         .execute(&mut *tx)
///         .await?;
///     Ok(())
/// }
/// # fn main() {
/// # let store: SqliteStore = unimplemented!();
/// let handler = tx_handler(&store, (), charge);
/// # }
/// ```
///
/// Nested transactions of `sqlx` are savepoints. It cannot commit: the pipeline does, with the completion as the last
/// statement. A handler that runs `COMMIT` or `ROLLBACK` as SQL takes its effect out of the promise; the commit then
/// fails with an error that says so.
///
/// SQLite has one writer. While a handler runs, every other write of the store waits, claims and renewals included: so
/// transactional handlers run one at a time (or share a transaction, which goes on taking them in for a quarter of the
/// lease), the lease must be longer than the handler's timeout, and a handler must not itself call a writing method of
/// the store, which would wait for the handler's own end.
pub struct SqliteTx<'c> {
    conn: &'c mut SqliteConnection,
}

impl SqliteTx<'_> {
    /// Writes a message that goes out if this transaction commits, and never was if it does not. A
    /// [`Relay`](onceward::outbox::Relay), here or in another process of the host, sends it afterwards.
    ///
    /// ```no_run
    /// # use onceward::{Handled, Message, Outgoing};
    /// # use onceward_sqlite::SqliteTx;
    /// async fn charge(_: (), message: Message, mut tx: SqliteTx<'_>) -> Handled {
    ///     sqlx::query("INSERT INTO charges (payload) VALUES (?)")
    ///         .bind(&message.payload()[..])
    ///         .execute(&mut *tx)
    ///         .await?;
    ///     let charged = Outgoing {
    ///         destination: "charged".into(),
    ///         order_key: Some("customer 7".into()),
    ///         payload: message.payload().clone(),
    ///         ..Outgoing::default()
    ///     };
    ///     tx.outbox(charged).await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Without an [`id`](Outgoing::id) it gets a random one, which stays the same however often it is sent. Messages with an
    /// order key go out in the order in which their transactions commit; those without one go out in any order.
    ///
    /// # Errors
    /// [`Error`] if the message has no destination, its order key is longer than 1,024 bytes, or SQLite refuses; the handler
    /// should return it.
    ///
    /// # Cancel safety
    /// After a dropped call the handler should return an error, which rolls the transaction back.
    pub async fn outbox(&mut self, message: Outgoing) -> Result<(), Error> {
        self.outbox_all(&[message]).await
    }

    /// As [`outbox`](Self::outbox), for several in their order.
    ///
    /// # Errors
    /// As [`outbox`](Self::outbox).
    pub async fn outbox_all(&mut self, messages: &[Outgoing]) -> Result<(), Error> {
        crate::outbox::write(self.conn, messages).await
    }
}

impl std::fmt::Debug for SqliteTx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteTx").finish_non_exhaustive()
    }
}

impl Deref for SqliteTx<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.conn
    }
}

impl DerefMut for SqliteTx<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.conn
    }
}

#[async_trait]
impl TransactionalStore for SqliteStore {
    type Conn = SqliteConn;
    type Tx<'c> = SqliteTx<'c>;

    /// One: SQLite has a single writer.
    fn max_transactions(&self) -> Option<usize> {
        Some(1)
    }

    async fn begin(&self) -> Result<SqliteConn, Error> {
        let slot = self.writer().turn().await;
        // A task: if the caller goes away, its output is dropped there, and with it rolled back.
        join_task(tokio::spawn(begin(slot)).await)?
    }

    fn lend<'c>(&self, conn: &'c mut SqliteConn) -> SqliteTx<'c> {
        let conn = conn.slot.as_mut().and_then(|slot| slot.opened());
        SqliteTx { conn: conn.expect("a transaction is open until it is committed or rolled back") }
    }

    async fn commit(
        &self,
        conn: SqliteConn,
        scope: &Scope,
        request: &CompleteRequest,
    ) -> Result<Commit, Error> {
        let task = commit(self.writer().clone(), conn, scope.clone(), request.clone());
        join_task(tokio::spawn(task).await)?
    }

    async fn rollback(&self, mut conn: SqliteConn) {
        if let Some(mut slot) = conn.slot.take() {
            let task = tokio::spawn(async move { end(&mut slot).await });
            if let Err(error) = join_task(task.await) {
                tracing::debug!(%error, "a rollback was not awaited to its end");
            }
        }
    }

    fn shares_transactions(&self) -> bool {
        true
    }

    async fn begin_shared(&self) -> Result<SqliteConn, Error> {
        // A transaction of one handler has a savepoint as well.
        TransactionalStore::begin(self).await
    }

    async fn keep(&self, conn: &mut SqliteConn) -> Result<(), Error> {
        next(conn.open()?, "RELEASE onceward_effect; SAVEPOINT onceward_effect").await
    }

    async fn undo(&self, conn: &mut SqliteConn) -> Result<(), Error> {
        undo(conn.open()?).await
    }

    async fn commit_shared(
        &self,
        conn: SqliteConn,
        scope: &Scope,
        requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        let task = commit_shared(self.writer().clone(), conn, scope.clone(), requests.to_vec());
        join_task(tokio::spawn(task).await)?
    }
}

async fn begin(mut slot: OwnedMutexGuard<WriterConnection>) -> Result<SqliteConn, Error> {
    let failed = |error| store_error(BEGIN, error);
    slot.set_unfinished(true);
    let conn = slot.conn().await.map_err(failed)?;
    // By way of sqlx's own count of transactions, so that one which the handler opens becomes a savepoint.
    SqliteTransactionManager::begin(conn, Some("BEGIN IMMEDIATE".into_sql_str())).await.map_err(failed)?;
    let mut conn = SqliteConn { slot: Some(slot) };
    // It vanishes with the transaction: a handler that ended that on its own is found out.
    if let Some(open) = conn.slot.as_mut().and_then(|slot| slot.opened()) {
        open.execute("SAVEPOINT onceward_effect").await.map_err(failed)?;
    }
    Ok(conn)
}

async fn commit(
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
async fn commit_shared(
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

/// Commits what is written.
async fn finish(slot: &mut WriterConnection) -> Result<(), Error> {
    let conn = slot.conn().await.map_err(|error| store_error(COMMIT, error))?;
    if let Err(error) = SqliteTransactionManager::commit(conn).await {
        // Whether it is committed is not known; nothing may stay open.
        slot.reset().await;
        return Err(store_error(COMMIT, error));
    }
    slot.set_unfinished(false);
    Ok(())
}

/// Writes the completion, fenced, as the transaction's last statement.
async fn complete(
    writer: &Writer,
    slot: &mut WriterConnection,
    scope: &Scope,
    request: &CompleteRequest,
) -> Result<Commit, Error> {
    release(slot).await?;
    write(writer, slot, scope, request).await
}

/// Sees to it that the handler has left the transaction as it was given it, and takes its savepoint away.
async fn release(slot: &mut WriterConnection) -> Result<(), Error> {
    next(slot, "RELEASE onceward_effect").await
}

/// As [`release`], by `statement`, which begins with that.
async fn next(slot: &mut WriterConnection, statement: &'static str) -> Result<(), Error> {
    let failed = |error| store_error(COMMIT, error);
    let conn = slot.conn().await.map_err(failed)?;
    // A nested transaction that the handler dropped is rolled back by a command that may still be on its way.
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

/// Takes back what was written since the savepoint, which stays.
async fn undo(slot: &mut WriterConnection) -> Result<(), Error> {
    let failed = |error| store_error(UNDO, error);
    let conn = slot.conn().await.map_err(failed)?;
    conn.ping().await.map_err(failed)?;
    while SqliteTransactionManager::get_transaction_depth(conn) > 1 {
        SqliteTransactionManager::rollback(conn).await.map_err(failed)?;
    }
    conn.execute("ROLLBACK TO onceward_effect").await.map(drop).map_err(failed)
}

/// The completion, in a transaction that is open.
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
    .bind(request.result.as_deref())
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

/// Rolls back what is open, however deep; if that fails, closes the connection, which does it too.
async fn end(slot: &mut WriterConnection) {
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
