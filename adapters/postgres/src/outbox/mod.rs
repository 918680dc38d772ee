//! The outbox: rows that commit with an effect, and what relays take of them.

mod listener;
mod rows;
mod status;
mod take;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::outbox::{KeyTurns, OutboxRow, OutboxStatus, OutboxStore, RowOutcome, TakeLimits};
use onceward::store::transition::micros;
use onceward::{Error, Outgoing};
use sqlx::{AssertSqlSafe, PgConnection, query};

use crate::connection::PgConn;
use crate::guard::join_task;
use crate::row::{NOW, integer};
use crate::session::WRITE;
use crate::store::PgStore;

pub(crate) use write::write;

/// The outbox in the store's schema: messages are put in by [`PgTx::outbox`](crate::PgTx::outbox) or [`put`](Self::put), and sent
/// by a [`Relay`](onceward::outbox::Relay). Clones share what they know.
///
/// ```no_run
/// # async fn example(store: onceward_postgres::PgStore, publisher: std::sync::Arc<dyn onceward::Publisher>,
/// #     shutdown: tokio_util::sync::CancellationToken) -> Result<(), onceward::Error> {
/// use onceward::outbox::{Relay, RelayConfig};
///
/// Relay::new(store.outbox(), publisher, RelayConfig::default())?.run(shutdown).await
/// # }
/// ```
///
/// Rows of one order key go out in the order in which their transactions committed. For that a transaction that writes a row
/// holds a lock of the order key until it ends: two that write several order keys in different orders may deadlock, and one
/// of them is tried again.
///
/// A relay holds a transaction open while it publishes, which is what keeps others from its rows. One that hangs for longer
/// than 30 s is cut off by the server, and another sends its rows.
#[derive(Clone, Debug)]
pub struct PgOutbox {
    store: PgStore,
    turns: Arc<KeyTurns>,
    listener: Arc<listener::OutboxListener>,
}

impl PgStore {
    /// The outbox in this store's schema.
    pub fn outbox(&self) -> PgOutbox {
        PgOutbox { store: self.clone(), turns: Arc::default(), listener: Arc::default() }
    }
}

impl PgOutbox {
    /// Writes messages inside a transaction of the caller's own: they go out if it commits, and never were if it does not.
    /// One without an id gets a random one, which stays the same however often it is sent.
    ///
    /// # Errors
    /// [`Error`] if a message has no destination, its order key is longer than 1,024 bytes, or the database refuses; the
    /// transaction is to be rolled back then.
    ///
    /// # Cancel safety
    /// After a dropped call the transaction is to be rolled back.
    pub async fn put(&self, conn: &mut PgConnection, messages: &[Outgoing]) -> Result<(), Error> {
        write(conn, &self.store.schema(), messages).await
    }
}

#[async_trait]
impl OutboxStore for PgOutbox {
    type Taken = PgConn;

    async fn take(&self, limits: &TakeLimits) -> Result<Option<(PgConn, Vec<OutboxRow>)>, Error> {
        // A task: if the caller goes away, what was taken is dropped there, and so given back.
        let (outbox, limits) = (self.clone(), *limits);
        join_task(tokio::spawn(async move { take::take(&outbox.store, &outbox.turns, &limits).await }).await)?
    }

    async fn settle(&self, taken: PgConn, outcomes: Vec<(i64, RowOutcome)>) -> Result<(), Error> {
        let schema = self.store.schema();
        let (patience, narrow) = (self.store.sessions().patience, self.store.sessions().pool.is_narrow());
        join_task(tokio::spawn(take::settle(schema, taken, outcomes, patience, narrow)).await)?
    }

    async fn wait(&self, at_most: Duration) {
        self.listener.wait(&self.store, at_most).await;
    }

    /// One relay at a time need not be: rows that another one removes are passed over.
    async fn clean(&self, keep: Duration, limit: u32) -> Result<u64, Error> {
        let (schema, keep) = (self.store.schema(), integer(micros(keep)));
        let removed = self.store.sessions().run_with_retry(WRITE, true, move |conn| {
            let schema = schema.clone();
            Box::pin(async move {
                let sql = format!(
                    "DELETE FROM {schema}.outbox WHERE seq = ANY(ARRAY(SELECT seq FROM {schema}.outbox \
                     WHERE published_at IS NOT NULL AND published_at <= (SELECT {NOW} - $1 OFFSET 0) \
                     ORDER BY published_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
                );
                let done = query(AssertSqlSafe(sql)).bind(keep).bind(i64::from(limit)).execute(conn).await?;
                Ok(done.rows_affected())
            })
        });
        removed.await.map_err(|error| error.into_error(WRITE))
    }

    async fn status(&self) -> Result<OutboxStatus, Error> {
        status::status(&self.store).await
    }
}
