//! The outbox: rows that commit with an effect, and what relays take of them.

mod leased_rows;
mod rows;
mod status;
mod take;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use onceward::outbox::{KeyTurns, OutboxRow, OutboxStatus, OutboxStore, RowOutcome, TakeLimits};
use onceward::store::transition::micros;
use onceward::{Error, Outgoing};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, query};
use tokio::time::Instant;

use crate::error::store_error;
use crate::row::integer;
use crate::store::{READ, SqliteStore, join_task};
use crate::writer::WRITE;

pub use leased_rows::LeasedRows;
pub(crate) use write::write;

/// How often it is looked whether anybody has committed.
const LOOK: Duration = Duration::from_millis(25);

/// The outbox in the store's file: messages are put in by [`SqliteTx::outbox`](crate::SqliteTx::outbox) or
/// [`put`](Self::put), and sent by a [`Relay`](onceward::outbox::Relay), in this process or in another of the host. Clones share
/// what they know.
///
/// ```no_run
/// # async fn example(store: onceward_sqlite::SqliteStore, publisher: std::sync::Arc<dyn onceward::Publisher>,
/// #     shutdown: tokio_util::sync::CancellationToken) -> Result<(), onceward::Error> {
/// use onceward::outbox::{Relay, RelayConfig};
///
/// Relay::new(store.outbox(), publisher, RelayConfig::default())?.run(shutdown).await
/// # }
/// ```
///
/// Rows of one order key go out in the order in which their transactions committed. A relay does not keep the file locked
/// while it publishes: it holds its rows for 5 s at a time, and again as long as it works, half a minute at most. So the rows of
/// a relay that was killed are free 5 s later.
#[derive(Clone, Debug)]
pub struct SqliteOutbox {
    store: SqliteStore,
    turns: Arc<KeyTurns>,
    /// The version of the file's content before it was last looked for rows.
    seen: Arc<AtomicI64>,
}

impl SqliteStore {
    /// The outbox in this store's file.
    pub fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox { store: self.clone(), turns: Arc::default(), seen: Arc::default() }
    }
}

impl SqliteOutbox {
    /// Writes messages inside a transaction of the caller's own: they go out if it commits, and never were if it does not.
    /// One without an id gets a random one, which stays the same however often it is sent.
    ///
    /// # Errors
    /// [`Error`] if a message has no destination, its order key is longer than 1,024 bytes, or SQLite refuses; the transaction
    /// is to be rolled back then.
    ///
    /// # Cancel safety
    /// After a dropped call the transaction is to be rolled back.
    pub async fn put(&self, conn: &mut SqliteConnection, messages: &[Outgoing]) -> Result<(), Error> {
        write(conn, messages).await
    }

    /// Changes with every commit of another connection, in this process or in another one.
    async fn version(&self) -> Result<i64, Error> {
        let rows = self.store.reader().await?.fetch(query("PRAGMA data_version")).await?;
        rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(|error| store_error(READ, error))
    }
}

#[async_trait]
impl OutboxStore for SqliteOutbox {
    type Taken = LeasedRows;

    async fn take(&self, limits: &TakeLimits) -> Result<Option<(LeasedRows, Vec<OutboxRow>)>, Error> {
        // What is committed from here on is either found below or wakes the next wait.
        self.seen.store(self.version().await?, Ordering::Relaxed);
        let Some(due) = take::due(&self.store, &self.turns, limits).await? else { return Ok(None) };
        // A task: if the caller goes away, what was taken is dropped there, and so given back.
        let (writer, limits) = (self.store.writer().clone(), *limits);
        join_task(tokio::spawn(async move { take::take(writer, &due, &limits).await }).await)?
    }

    async fn settle(&self, taken: LeasedRows, outcomes: Vec<(i64, RowOutcome)>) -> Result<(), Error> {
        join_task(tokio::spawn(taken.settle(outcomes)).await)?
    }

    /// SQLite tells nobody of a commit: the version of the file's content is looked at, forty times a second.
    async fn wait(&self, at_most: Duration) {
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
            match self.version().await {
                Ok(version) if version != self.seen.load(Ordering::Relaxed) => return,
                _ => {}
            }
        }
    }

    async fn clean(&self, keep: Duration, limit: u32) -> Result<u64, Error> {
        let writer = self.store.writer().clone();
        // A task, so that a dropped call leaves no transaction open.
        let task = tokio::spawn(async move {
            let mut slot = writer.turn().await;
            slot.begin().await?;
            let sql = "DELETE FROM onceward_outbox WHERE seq IN (SELECT seq FROM onceward_outbox \
                       WHERE published_at IS NOT NULL AND published_at <= ? ORDER BY published_at LIMIT ?)";
            let remove = async |conn: &mut SqliteConnection| {
                let before = integer(writer.time(&mut *conn).await?.saturating_sub(micros(keep)));
                query(sql).bind(before).bind(i64::from(limit)).execute(conn).await
            };
            let removed = match slot.conn().await {
                Ok(conn) => remove(conn).await,
                Err(error) => Err(error),
            };
            slot.finish(removed.map(|removed| removed.rows_affected())).await
        });
        join_task(task.await)?.map_err(|error| store_error(WRITE, error))
    }

    async fn status(&self) -> Result<OutboxStatus, Error> {
        status::status(&self.store).await
    }
}
