//! The inbox: the effect and its completion in one transaction.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::micros;
use onceward::store::{Commit, CompleteRequest, SharedCommit, TransactionalStore};
use onceward::{Error, ErrorKind, Outgoing, Scope};
use sqlx::postgres::{PgConnection, PgTransactionManager};
use sqlx::{AssertSqlSafe, SqlSafeStr, query, query_scalar, raw_sql};
use sqlx_core::transaction::TransactionManager;

use crate::conn::{PgConn, end};
use crate::effects::Effects;
use crate::error::{code, is_lost, not_the_messages, store_error};
use crate::guard::guarded;
use crate::row::{NOW, integer};
use crate::shared;
use crate::sql::{EQ, GT, PLUS};
use crate::store::PgStore;

pub(crate) const BEGIN: &str = "open a transaction";
pub(crate) const COMMIT: &str = "commit the effect and its completion";

/// What `complete_inbox` raises: the claim is not held; the transaction is not the one that was begun for the handler.
const NOT_HELD: &str = "OW001";
const NOT_OPEN: &str = "OW002";

/// What a transactional handler sees of the transaction: a [`PgConnection`] for any query of `sqlx`.
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
/// A bare `?` on an error of `sqlx` tries again, and uses no attempt where the message is not to blame: the transaction met another
/// one (SQLSTATE 40001, 40P01, 55P03), or the database takes no statement for now.
///
/// Nested transactions of `sqlx` are savepoints. It cannot commit: the pipeline does, with the completion as the last
/// statement. A handler that runs `COMMIT` or `ROLLBACK` as SQL takes its effect out of the promise, and those that share the
/// transaction with it; the commit then fails with an error that says so. The isolation level is READ COMMITTED, whatever the pool is set to.
pub struct PgTx<'c> {
    conn: &'c mut PgConnection,
    schema: Arc<str>,
}

impl PgTx<'_> {
    /// Writes a message that goes out if this transaction commits, and never was if it does not. A
    /// [`Relay`](onceward::outbox::Relay), here or in another process, sends it afterwards.
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
    /// Without an [`id`](Outgoing::id) it gets a random one, which stays the same however often it is sent. Messages with an
    /// order key go out in the order in which their transactions commit, and transactions that write the same order key
    /// wait for each other from here to their end; those without one go out in any order.
    ///
    /// # Errors
    /// [`Error`] if the message has no destination, its order key is longer than 1,024 bytes, or the database refuses; the
    /// handler should return it.
    ///
    /// # Cancel safety
    /// After a dropped call the handler should return an error, which rolls the transaction back.
    pub async fn outbox(&mut self, message: Outgoing) -> Result<(), Error> {
        self.outbox_all(&[message]).await
    }

    /// As [`outbox`](Self::outbox), for several in their order, in one statement.
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
        within(self.link().patience, BEGIN, begin(self.effects(), BEGIN_SQL)).await
    }

    fn handler_error(&self, error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
        error.downcast_ref::<sqlx::Error>().and_then(not_the_messages)
    }

    fn max_transactions(&self) -> Option<usize> {
        Some(self.effects().limit())
    }

    fn lend<'c>(&self, conn: &'c mut PgConn) -> PgTx<'c> {
        PgTx { conn: conn.connection(), schema: self.schema() }
    }

    async fn commit(&self, conn: PgConn, scope: &Scope, request: &CompleteRequest) -> Result<Commit, Error> {
        let scope = self.link().scope_id(scope).await.map_err(|attempt| attempt.told(COMMIT))?;
        let commit = commit(&self.link().schema, conn, scope, request, self.link().patience);
        within(self.link().patience, COMMIT, commit).await
    }

    async fn rollback(&self, conn: PgConn) {
        if let Err(error) = joined(tokio::spawn(end(conn)).await) {
            tracing::debug!(%error, "a rollback was not awaited to its end");
        }
    }

    fn shares_transactions(&self) -> bool {
        true
    }

    async fn begin_shared(&self) -> Result<PgConn, Error> {
        within(self.link().patience, BEGIN, shared::begin(self.effects())).await
    }

    async fn keep(&self, conn: &mut PgConn) -> Result<(), Error> {
        within(self.link().patience, shared::KEEP, shared::keep(conn.connection())).await
    }

    async fn undo(&self, conn: &mut PgConn) -> Result<(), Error> {
        within(self.link().patience, shared::UNDO, shared::undo(conn.connection())).await
    }

    async fn commit_shared(
        &self,
        conn: PgConn,
        scope: &Scope,
        requests: &[CompleteRequest],
    ) -> Result<SharedCommit, Error> {
        let scope = self.link().scope_id(scope).await.map_err(|attempt| attempt.told(COMMIT))?;
        let commit = shared::commit(&self.link().schema, conn, scope, requests, self.link().patience);
        within(self.link().patience, COMMIT, commit).await
    }
}

/// Gives up on a server that says nothing; the connection is closed.
pub(crate) async fn within<T>(
    patience: Duration,
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(patience, guarded(operation, work)).await.unwrap_or_else(|_| {
        let context = "the server said nothing for longer than statement_timeout; it may have happened";
        Err(Error::new(ErrorKind::Timeout, operation, context))
    })
}

/// The outcome of a task of our own; a panic in it goes on in the caller.
pub(crate) fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, Error> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::new(ErrorKind::Unavailable, COMMIT, "the runtime ended before the transaction did"),
    })
}

/// By way of sqlx's own count of transactions, so that one which the handler opens becomes a savepoint. The setting vanishes
/// with the transaction: a handler that ended that on its own is found out.
pub(crate) const BEGIN_SQL: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL onceward.inbox = 'open'";

/// Opens a transaction on a connection that works: after a restart of the server, those that were idle in the pool do not.
/// Dropped on the way, it closes the connection.
pub(crate) async fn begin(pool: &Effects, sql: &'static str) -> Result<PgConn, Error> {
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

/// Writes the completion and commits, in one message: the server reaches the second statement only if the first, a function
/// of our own, has found the claim. Dropped on the way, it closes the connection, and the outcome is unknown.
async fn commit(
    schema: &str,
    mut open: PgConn,
    scope: i64,
    request: &CompleteRequest,
    patience: Duration,
) -> Result<Commit, Error> {
    no_nested(open.connection())?;
    let CompleteRequest { lease, result, ttl, .. } = request;
    let bytes = |hex: String| format!("pg_catalog.decode('{hex}', 'hex')");
    let sql = format!(
        "SELECT {schema}.complete_inbox({scope}::bigint, {}, {}, {}::bigint, {}::bigint, {}); COMMIT; BEGIN",
        bytes(lease.key.to_string()),
        bytes(lease.owner.to_hex()),
        integer(lease.fence),
        integer(micros(*ttl)),
        result
            .as_ref()
            .map_or_else(|| "NULL::pg_catalog.bytea".to_owned(), |result| bytes(format!("{result:x}"))),
    );
    open.commits(patience);
    let conn = open.connection();
    let outcome = raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await;
    open.committed();
    match outcome {
        Ok(_) => {
            // For sqlx the transaction goes on until a command of its own ends it. The one behind the COMMIT is there for
            // that: empty, and rolled back by what goes to the server next, as the connection returns to its pool.
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

/// Sees to it that the handler has left the transaction as it was given it, and that its commit will be on disk.
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

/// Writes the completion, fenced, as the transaction's last statement. False: the claim is no longer held.
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
        .bind(request.result.as_deref())
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

/// Whether this is still the transaction that was begun for the handler.
pub(crate) const IS_OPEN: &str =
    "coalesce(pg_catalog.current_setting('onceward.inbox', true), '') OPERATOR(pg_catalog.=) 'open'";

/// Has the commit wait until it is on disk; always true.
pub(crate) const IS_DURABLE: &str =
    "pg_catalog.set_config('synchronous_commit', 'on', true) OPERATOR(pg_catalog.=) 'on'";
