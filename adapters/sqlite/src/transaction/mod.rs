//! Transactions of handlers: the effect and its completion commit together.

mod completion;

use std::ops::{Deref, DerefMut};

use async_trait::async_trait;
use onceward::store::{Commit, CompleteRequest, SharedCommit, TransactionalStore};
use onceward::{Error, Outgoing, Scope};
use sqlx::sqlite::SqliteConnection;

use self::completion::{begin, commit, commit_shared, end, next, undo};
use crate::store::SqliteStore;
use crate::writer::join_task;

pub use completion::SqliteConn;

/// The transaction of a transactional handler: a [`SqliteConnection`] for any query of `sqlx`.
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
/// Nested transactions of `sqlx` are savepoints. The handler cannot commit: the pipeline does, with the completion as the last
/// statement. A handler that executes `COMMIT` or `ROLLBACK` as SQL voids the guarantee for its effect; the commit then fails
/// with an error that reports it.
///
/// SQLite has one writer. While a handler runs, every other write of the store waits, claims and renewals included. So
/// transactional handlers run one by one (or share a transaction, which accepts more of them for a quarter of the lease), the
/// lease must be longer than the handler's timeout, and a handler must not call a writing method of the store: it would wait
/// for the handler to return.
pub struct SqliteTx<'c> {
    conn: &'c mut SqliteConnection,
}

impl SqliteTx<'_> {
    /// Writes a message to the outbox: it is published if, and only if, this transaction commits, by a
    /// [`Relay`](onceward::outbox::Relay) in this process or another one of the host.
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
    /// Without an [`id`](Outgoing::id) it gets a random one, which is the same for every publish. Messages with an order key are
    /// published in the commit order of their transactions; messages without one in any order.
    ///
    /// # Errors
    /// [`Error`] if the message has no destination, its order key is longer than 1,024 bytes, or SQLite reports an error; the
    /// handler should return it.
    ///
    /// # Cancel safety
    /// After a dropped call the handler should return an error, which rolls the transaction back.
    pub async fn outbox(&mut self, message: Outgoing) -> Result<(), Error> {
        self.outbox_all(&[message]).await
    }

    /// As [`outbox`](Self::outbox), for several messages in their order.
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
        // In a task: if the caller is dropped, so is the result, which rolls back.
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
                tracing::debug!(%error, "rollback task ended early");
            }
        }
    }

    fn shares_transactions(&self) -> bool {
        true
    }

    async fn begin_shared(&self) -> Result<SqliteConn, Error> {
        // The transaction of a single handler has the same savepoint.
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
