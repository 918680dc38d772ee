//! Transactions of handlers: the effect and its completion commit together.

mod complete_within;
pub(crate) mod completion;
mod shared;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use async_trait::async_trait;
use onceward::store::{Commit, CompleteRequest, SharedCommit, TransactionalStore};
use onceward::{Error, ErrorKind, Outgoing, Scope};
use sqlx::postgres::PgConnection;

use self::completion::{BEGIN, BEGIN_SQL, COMMIT, begin, commit};
use crate::connection::{PgConn, end};
use crate::error::transient_kind;
use crate::guard::{join_task, within};
use crate::store::PgStore;

/// The transaction of a transactional handler: a [`PgConnection`] for any query of `sqlx`.
///
/// ```no_run
/// # use onceward::{Handled, Message, tx_handler};
/// # use onceward_postgres::{PgStore, PgTx};
/// async fn charge(_: (), message: Message, mut tx: PgTx<'_>) -> Handled {
///     sqlx::query("INSERT INTO charges (payload) VALUES ($1)")
///         .bind(&message.payload()[..])
///         .execute(&mut *tx)
///         .await?;
///     Ok(())
/// }
/// # fn main() {
/// # let store: PgStore = unimplemented!();
/// let handler = tx_handler(&store, (), charge);
/// # }
/// ```
///
/// A bare `?` on an error of `sqlx` retries the message. No attempt is used for a conflict with another transaction (SQLSTATE
/// 40001, 40P01, 55P03) and while the database accepts no statements.
///
/// Nested transactions of `sqlx` are savepoints. The handler cannot commit: the pipeline does, with the completion as the last
/// statement. A handler that executes `COMMIT` or `ROLLBACK` as SQL voids the guarantee for its effect, and for those that
/// share the transaction; the commit then fails with an error that reports it. The isolation level is READ COMMITTED, whatever
/// the pool is set to.
pub struct PgTx<'c> {
    conn: &'c mut PgConnection,
    schema: Arc<str>,
}

impl PgTx<'_> {
    /// Writes a message to the outbox: it is published if, and only if, this transaction commits, by a
    /// [`Relay`](onceward::outbox::Relay) in this process or another.
    ///
    /// ```no_run
    /// # use onceward::{Handled, Message, Outgoing};
    /// # use onceward_postgres::PgTx;
    /// async fn charge(_: (), message: Message, mut tx: PgTx<'_>) -> Handled {
    ///     sqlx::query("INSERT INTO charges (payload) VALUES ($1)")
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
    /// published in the commit order of their transactions, and transactions that write the same order key wait for each other
    /// from here to their end; messages without one are published in any order.
    ///
    /// # Errors
    /// [`Error`] if the message has no destination, its order key is longer than 1,024 bytes, or the database reports an error;
    /// the handler should return it.
    ///
    /// # Cancel safety
    /// After a dropped call the handler should return an error, which rolls the transaction back.
    pub async fn outbox(&mut self, message: Outgoing) -> Result<(), Error> {
        self.outbox_all(&[message]).await
    }

    /// As [`outbox`](Self::outbox), for several messages in their order, in one statement.
    ///
    /// # Errors
    /// As [`outbox`](Self::outbox).
    pub async fn outbox_all(&mut self, messages: &[Outgoing]) -> Result<(), Error> {
        crate::outbox::write(self.conn, &self.schema, messages).await
    }
}

impl std::fmt::Debug for PgTx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgTx").finish_non_exhaustive()
    }
}

impl Deref for PgTx<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn
    }
}

impl DerefMut for PgTx<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn
    }
}

#[async_trait]
impl TransactionalStore for PgStore {
    type Conn = PgConn;
    type Tx<'c> = PgTx<'c>;

    async fn begin(&self) -> Result<PgConn, Error> {
        within(self.sessions().patience, BEGIN, begin(self.handler_pool(), BEGIN_SQL)).await
    }

    fn handler_error(&self, error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
        error.downcast_ref::<sqlx::Error>().and_then(transient_kind)
    }

    fn max_transactions(&self) -> Option<usize> {
        Some(self.handler_pool().limit())
    }

    fn lend<'c>(&self, conn: &'c mut PgConn) -> PgTx<'c> {
        PgTx { conn: conn.connection(), schema: self.schema() }
    }

    async fn commit(&self, conn: PgConn, scope: &Scope, request: &CompleteRequest) -> Result<Commit, Error> {
        let scope = self.sessions().scope_id(scope).await.map_err(|error| error.into_error(COMMIT))?;
        let commit = commit(&self.sessions().schema, conn, scope, request, self.sessions().patience);
        within(self.sessions().patience, COMMIT, commit).await
    }

    async fn rollback(&self, conn: PgConn) {
        if let Err(error) = join_task(tokio::spawn(end(conn)).await) {
            tracing::debug!(%error, "rollback task ended early");
        }
    }

    fn shares_transactions(&self) -> bool {
        true
    }

    async fn begin_shared(&self) -> Result<PgConn, Error> {
        within(self.sessions().patience, BEGIN, shared::begin(self.handler_pool())).await
    }

    async fn keep(&self, conn: &mut PgConn) -> Result<(), Error> {
        within(self.sessions().patience, shared::KEEP, shared::keep(conn.connection())).await
    }

    async fn undo(&self, conn: &mut PgConn) -> Result<(), Error> {
        within(self.sessions().patience, shared::UNDO, shared::undo(conn.connection())).await
    }

    async fn commit_shared(
        &self,
        conn: PgConn,
        scope: &Scope,
        requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        let scope = self.sessions().scope_id(scope).await.map_err(|error| error.into_error(COMMIT))?;
        let commit = shared::commit(&self.sessions().schema, conn, scope, requests, self.sessions().patience);
        within(self.sessions().patience, COMMIT, commit).await
    }
}
