//! The outbox: messages that commit with an effect, and that a relay publishes.

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
use crate::reader::READ;
use crate::row::integer;
use crate::store::SqliteStore;
use crate::writer::{WRITE, join_task};

pub use leased_rows::LeasedRows;
pub(crate) use write::write;

/// Interval at which commits of other connections are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// The outbox in the store's file: messages are written by [`SqliteTx::outbox`](crate::SqliteTx::outbox) or
/// [`put`](Self::put), and published by a [`Relay`](onceward::outbox::Relay), in this process or another one of the host. Clones
/// share their state.
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
/// Rows of one order key are published in the commit order of their transactions. A relay does not lock the file while it
/// publishes: it leases its rows for 5 s, and renews the lease while it works, for 30 s at most. So the rows of a killed relay
/// are available after 5 s.
#[derive(Clone, Debug)]
pub struct SqliteOutbox {
    store: SqliteStore,
    turns: Arc<KeyTurns>,
    /// The version of the file's content before rows were last queried.
    seen: Arc<AtomicI64>,
}

impl SqliteStore {
    /// The outbox in this store's file.
    pub fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox { store: self.clone(), turns: Arc::default(), seen: Arc::default() }
    }
}

impl SqliteOutbox {
    /// Writes messages in a transaction of the caller: they are published if, and only if, it commits. A message without an id gets
    /// a random one, which is the same for every publish.
    ///
    /// # Errors
    /// [`Error`] if a message has no destination, its order key is longer than 1,024 bytes, or SQLite reports an error. The
    /// caller must roll the transaction back.
    ///
    /// # Cancel safety
    /// After a dropped call the caller must roll the transaction back.
    pub async fn put(&self, conn: &mut SqliteConnection, messages: &[Outgoing]) -> Result<(), Error> {
        write(conn, messages).await
    }

    /// The version of the file's content, which changes with every commit of another connection, in any process.
    async fn version(&self) -> Result<i64, Error> {
        let rows = self.store.reader().lock().await?.fetch(query("PRAGMA data_version")).await?;
        rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(|error| store_error(READ, error))
    }
}

#[async_trait]
impl OutboxStore for SqliteOutbox {
    type Taken = LeasedRows;

    async fn take(&self, limits: &TakeLimits) -> Result<Option<(LeasedRows, Vec<OutboxRow>)>, Error> {
        // Rows committed after this are either found below or wake the next wait.
        self.seen.store(self.version().await?, Ordering::Relaxed);
        let Some(due) = take::due(&self.store, &self.turns, limits).await? else { return Ok(None) };
        // In a task: if the caller is dropped, so is the result, which returns the rows.
        let (writer, limits) = (self.store.writer().clone(), *limits);
        join_task(tokio::spawn(async move { take::take(writer, &due, &limits).await }).await)?
    }

    async fn settle(&self, taken: LeasedRows, outcomes: Vec<(i64, RowOutcome)>) -> Result<(), Error> {
        join_task(tokio::spawn(taken.settle(outcomes)).await)?
    }

    /// SQLite does not notify of commits: the version of the file's content is polled 40 times a second.
    async fn wait(&self, at_most: Duration) {
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(POLL_INTERVAL)).await;
            match self.version().await {
                Ok(version) if version != self.seen.load(Ordering::Relaxed) => return,
                _ => {}
            }
        }
    }

    async fn clean(&self, keep: Duration, limit: u32) -> Result<u64, Error> {
        let writer = self.store.writer().clone();
        // In a task, so that a dropped call leaves no transaction open.
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
