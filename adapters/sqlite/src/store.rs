//! The SQLite store: [`SqliteStore`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::Record;
use onceward::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Expiring,
    FailRequest, Failure, KeyRecord, KeyStats, Lease, ListQuery, Redrive, RedriveRequest, RenewRequest,
    Renewal, StoreAdmin, StoreCapabilities,
};
use onceward::{Error, Key, Scope, Store};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::clock::Clock;
use crate::config::SqliteConfig;
use crate::error::store_error;
use crate::reader::{READ, SqliteReader};
use crate::writer::{Writer, connect};
use crate::{check, inspect, migrate, purge, row};

/// Keeps keys in a SQLite file. Clones share one writer; so do all tasks of a process.
///
/// - One file in WAL mode with `synchronous=FULL`: what a call has confirmed survives a power cut.
/// - One writer: batches that arrive during a write share the next transaction and disk sync.
/// - Several processes of one host may share the file. One that waits longer than
///   [`busy_timeout`](SqliteConfig::busy_timeout) gets a retryable error.
/// - All processes share one clock, which is stored in the file: the host's clock when it was first read, plus the uptime since.
///   Setting the host's clock back has no effect; setting it forward ends leases and TTLs early, for all processes alike.
///
/// The tables' names begin with `onceward_`, so that the application's own tables may be in the same file. For the
/// inbox, they must be: see [`SqliteTx`](crate::SqliteTx).
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<SqliteStoreParts>,
}

struct SqliteStoreParts {
    config: SqliteConfig,
    writer: Writer,
    reader: SqliteReader,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.inner.config.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, and applies pending migrations if [`SqliteConfig::migrate`] is true.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be opened, was written by a newer version, or holds keys of another encoding.
    pub async fn open(config: SqliteConfig) -> Result<Self, Error> {
        Self::open_with_clock(config, Clock::system()).await
    }

    /// As [`open`](Self::open), with a clock that tests can move.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_with_clock(config: SqliteConfig, clock: Clock) -> Result<Self, Error> {
        let config = config.prepared().await?;
        let writer = Writer::new(config.for_writing(), clock);
        let mut slot = writer.turn().await;
        let conn = connect(&mut slot).await?;
        if config.migrate {
            let applied = migrate::migrate(conn, row::integer(writer.now())).await?;
            if applied > 0 {
                tracing::info!(path = %config.path.display(), applied, "migrations of the SQLite store applied");
            }
        }
        migrate::check(conn).await?;
        writer.read_clock(conn).await.map_err(|error| store_error(READ, error))?;
        drop(slot);
        let reader = SqliteReader::new(config.for_reading());
        Ok(Self { inner: Arc::new(SqliteStoreParts { config, writer, reader }) })
    }

    /// Applies pending migrations, whatever [`SqliteConfig::migrate`] says, and returns their number.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn migrate(config: &SqliteConfig) -> Result<u32, Error> {
        let config = config.prepared().await?;
        let writer = Writer::new(config.for_writing(), Clock::system());
        let mut slot = writer.turn().await;
        let applied = migrate::migrate(connect(&mut slot).await?, row::integer(writer.now())).await;
        slot.reset().await;
        applied
    }

    /// The number of pending migrations of an existing file. Changes nothing.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn missing_migrations(config: &SqliteConfig) -> Result<u32, Error> {
        let config = SqliteConfig { create: false, ..config.clone() }.prepared().await?;
        let opened = config.for_inspection().connect().await;
        let mut conn = opened.map_err(|error| store_error(READ, error))?;
        let missing = migrate::missing(&mut conn).await;
        if let Err(error) = conn.close().await {
            tracing::debug!(%error, "closing a connection to the SQLite store failed");
        }
        missing
    }

    /// Closes the file. The next use of the store reopens it.
    pub async fn close(&self) {
        self.inner.reader.close().await;
        self.inner.writer.turn().await.reset().await;
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.inner.writer
    }

    /// The connection that reads.
    pub(crate) fn reader(&self) -> &SqliteReader {
        &self.inner.reader
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("sqlite").durable().shared()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        check::check(&self.inner.config, &self.inner.writer).await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        let terms = *terms;
        let claim = move |record: &mut Record, at, request: &ClaimRequest| record.claim(at, &terms, request);
        self.writer().call(scope, batch.to_vec(), |request| request.key, claim).await
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        let key = |request: &CompleteRequest| request.lease.key;
        self.writer()
            .call(scope, batch.to_vec(), key, |record, at, request| record.complete(at, request))
            .await
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        let key = |request: &RenewRequest| request.lease.key;
        self.writer().call(scope, batch.to_vec(), key, |record, at, request| record.renew(at, request)).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        let key = |request: &FailRequest| request.lease.key;
        self.writer().call(scope, batch.to_vec(), key, |record, at, request| record.fail(at, request)).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        let key = |request: &BuryRequest| request.lease.key;
        self.writer().call(scope, batch.to_vec(), key, |record, at, request| record.bury(at, request)).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        let key = |lease: &Lease| lease.key;
        self.writer().call(scope, batch.to_vec(), key, |record, at, lease| record.release(at, lease)).await
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        Some(self)
    }
}

#[async_trait]
impl StoreAdmin for SqliteStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        let key = |request: &RedriveRequest| request.key;
        self.writer()
            .call(scope, batch.to_vec(), key, |record, at, request| record.redrive(at, request))
            .await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        self.writer().call(scope, keys.to_vec(), |key| *key, |record, at, _| record.forget(at)).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        inspect::inspect(self.reader(), self.writer(), scope, key).await
    }

    async fn list(&self, scope: &Scope, list: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        inspect::list(self.reader(), self.writer(), scope, list).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        inspect::stats(self.reader(), self.writer(), scope).await
    }
}

#[async_trait]
impl Expiring for SqliteStore {
    async fn purge(&self, limit: u32) -> Result<u64, Error> {
        purge::purge(self.writer().clone(), limit).await
    }

    fn purge_interval(&self) -> Duration {
        Duration::from_secs(30)
    }
}
