//! The store itself: [`SqliteStore`].

use std::path::PathBuf;
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
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Mutex, MutexGuard};

use crate::clock::Clock;
use crate::config::SqliteConfig;
use crate::error::store_error;
use crate::writer::{WRITE, Writer, WriterConnection};
use crate::{check, inspect, migrate, purge, row};

pub(crate) const READ: &str = "read from the SQLite store";

/// Keeps keys in a SQLite file. Clones share one writer; so do all tasks of a process.
///
/// - One file in WAL mode with `synchronous=FULL`: whatever a call has answered survives a power cut.
/// - One writer: the batches that gather while another is being written share one transaction and one flush to disk.
/// - Several processes of one host may share the file. One that waits longer than
///   [`busy_timeout`](SqliteConfig::busy_timeout) gets a retryable error.
/// - All processes share one clock, which is kept in the file: the host's as it was first read, and the host's uptime from there
///   on. Setting the host's clock back changes nothing; set forward, it ends leases and TTLs early, for all processes alike.
///
/// The tables' names begin with `onceward_`, so that the application's own tables may be in the same file. For the
/// inbox, they must be: see [`SqliteTx`](crate::SqliteTx).
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: SqliteConfig,
    writer: Writer,
    reader: Mutex<Option<SqliteConnection>>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.inner.config.path()).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file at `path`, and creates file and schema if they are not there.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_in(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::open(SqliteConfig::new(path)).await
    }

    /// Opens the file, and brings its schema up to date if the configuration says so.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be opened, was written by a newer version, or holds keys of another encoding.
    pub async fn open(config: SqliteConfig) -> Result<Self, Error> {
        Self::open_with_clock(config, Clock::system()).await
    }

    /// As [`open`](Self::open), with a clock that can be moved: for tests.
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
                tracing::info!(path = %config.path().display(), applied, "the SQLite store's schema is up to date");
            }
        }
        migrate::check(conn).await?;
        writer.look_at_clock(conn).await.map_err(|error| store_error(READ, error))?;
        drop(slot);
        Ok(Self { inner: Arc::new(Inner { config, writer, reader: Mutex::new(None) }) })
    }

    /// Brings the schema of a file up to date, whatever the configuration says, and answers how many steps that took.
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

    /// How many steps [`migrate`](Self::migrate) would take on a file that is there; 0 if its schema is up to date. Changes
    /// nothing.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn missing_migrations(config: &SqliteConfig) -> Result<u32, Error> {
        let config = config.clone().create_if_missing(false).prepared().await?;
        let opened = config.for_looking().connect().await;
        let mut conn = opened.map_err(|error| store_error(READ, error))?;
        let missing = migrate::missing(&mut conn).await;
        if let Err(error) = conn.close().await {
            tracing::debug!(%error, "closing a connection to the SQLite store failed");
        }
        missing
    }

    /// Closes the file. The store opens it again if it is used again.
    pub async fn close(&self) {
        if let Some(conn) = self.inner.reader.lock().await.take()
            && let Err(error) = conn.close().await
        {
            tracing::debug!(%error, "closing a connection to the SQLite store failed");
        }
        self.inner.writer.turn().await.reset().await;
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.inner.writer
    }

    /// The connection that looks, which never waits for the writer.
    pub(crate) async fn reader(&self) -> Result<ReadConnection<'_>, Error> {
        let mut guard = self.inner.reader.lock().await;
        if guard.is_none() {
            let conn = self.inner.config.for_reading().connect().await;
            *guard = Some(conn.map_err(|error| store_error(READ, error))?);
        }
        Ok(ReadConnection { guard })
    }
}

/// Opens the writer's connection. Several processes that open a new file at once get in each other's way while it
/// turns to WAL, which SQLite does not wait for; so this does, for as long as one write would.
pub(crate) async fn connect(slot: &mut WriterConnection) -> Result<&mut SqliteConnection, Error> {
    const TRIES: u32 = 50;
    let mut tried = 0;
    loop {
        match slot.conn().await {
            Ok(_) => break,
            Err(sqlx::Error::Database(error)) if tried < TRIES && is_busy(error.as_ref()) => {
                tried += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(store_error(slot.opening(), error)),
        }
    }
    let opening = slot.opening();
    slot.conn().await.map_err(|error| store_error(opening, error))
}

fn is_busy(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == 5)
}

/// The reading connection, held for one query.
pub(crate) struct ReadConnection<'s> {
    guard: MutexGuard<'s, Option<SqliteConnection>>,
}

impl ReadConnection<'_> {
    /// All rows of a statement. After an error the connection is opened anew.
    pub(crate) async fn fetch<'q>(
        mut self,
        statement: sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, Error> {
        let Some(conn) = self.guard.as_mut() else { return Ok(Vec::new()) };
        let rows = statement.fetch_all(conn).await;
        if rows.is_err() {
            *self.guard = None;
        }
        rows.map_err(|error| store_error(READ, error))
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
        inspect::inspect(self, scope, key).await
    }

    async fn list(&self, scope: &Scope, list: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        inspect::list(self, scope, list).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        inspect::stats(self, scope).await
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

/// The outcome of a task of our own; a panic in it goes on in the caller.
pub(crate) fn join_task<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, Error> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => {
            Error::new(onceward::ErrorKind::Unavailable, WRITE, "the runtime ended before the write did")
        }
    })
}
