//! The Postgres store: [`PgStore`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::{Moment, Record, Step};
use onceward::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Expiring,
    FailRequest, Failure, KeyRecord, KeyStats, Lease, ListQuery, Redrive, RedriveRequest, RenewRequest,
    Renewal, StoreAdmin, StoreCapabilities,
};
use onceward::{Error, Key, Scope, Store};
use sqlx::Connection as _;
use sqlx::postgres::PgPool;

use crate::claim::contended::ContendedKeys;
use crate::claim::row_locks::{LockPolicy, LockedBatch};
use crate::claim::single_statement::{self, Durability};
use crate::claim::unanswered::UnansweredClaims;
use crate::config::{PgConfig, PgOptions, quote_identifier};
use crate::connector::Connector;
use crate::guard::{catch_panic, catch_panic_in_call};
use crate::handler_pool::HandlerPool;
use crate::pool::{Session, SessionOpener};
use crate::session::Sessions;
use crate::{check, claim, inspect, migrate, purge};

/// Keeps keys in a Postgres schema. Clones share one pool.
///
/// - A batch of new claims, and a batch of completions, is one statement. Completed and dead keys are read in another one,
///   which writes nothing; all other known keys are processed under row locks, taken in key order.
/// - The server's clock determines leases and TTLs.
/// - For a claim, an unsettled row that another transaction has locked for longer than [`lock_timeout`](PgOptions::lock_timeout) is in
///   progress; the other keys of the batch are not affected.
/// - Completions set `synchronous_commit = on`, whatever the role or the database is set to.
#[derive(Clone)]
pub struct PgStore {
    inner: Arc<PgStoreParts>,
}

struct PgStoreParts {
    connector: Connector,
    sessions: Sessions,
    handler_pool: HandlerPool,
    contended: Arc<ContendedKeys>,
    unanswered: UnansweredClaims,
}

impl std::fmt::Debug for PgStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgStore").field("address", &self.inner.connector.address()).finish_non_exhaustive()
    }
}

impl PgStore {
    /// Connects, and applies pending migrations if [`PgOptions::migrate`] is true.
    ///
    /// # Errors
    /// [`Error`] if the configuration is invalid, the server cannot be reached, or the schema was written by a newer version
    /// or holds keys of another encoding.
    pub async fn open(config: PgConfig) -> Result<Self, Error> {
        Self::with_connector(Connector::new(config)?, None).await
    }

    /// As [`open`](Self::open), with the application's pool for the transactions of handlers. Claims and completions use
    /// connections of the store's own to the same database, with timeouts of their own.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn from_client(pool: PgPool, options: PgOptions) -> Result<Self, Error> {
        Self::with_connector(Connector::for_pool(&pool, options)?, Some(pool)).await
    }

    async fn with_connector(connector: Connector, pool: Option<PgPool>) -> Result<Self, Error> {
        let name = connector.schema().to_owned();
        let mut session = connector.connect().await?;
        if connector.options.migrate {
            let applied =
                catch_panic_in_call(migrate::MIGRATE, migrate::migrate(&mut session.conn, &name)).await?;
            if applied > 0 {
                let address = connector.address();
                tracing::info!(address, schema = name, applied, "migrations of the Postgres store applied");
            }
        }
        catch_panic_in_call(migrate::USE, migrate::check(&mut session.conn, &name)).await?;
        close(session).await;
        let schema = quote_identifier(&name)?;
        let store_pool = connector.store_pool(single_statement::statements(&schema));
        let sessions = Sessions::new(store_pool, schema, connector.options.statement_timeout);
        let handler_pool = match pool {
            Some(pool) => HandlerPool::Application(pool),
            None => HandlerPool::Own(connector.handler_pool()),
        };
        let (contended, unanswered) = (Arc::default(), UnansweredClaims::default());
        Ok(Self {
            inner: Arc::new(PgStoreParts { connector, sessions, handler_pool, contended, unanswered }),
        })
    }

    /// Applies pending migrations, whatever [`PgOptions::migrate`] says, and returns their number.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn migrate(config: &PgConfig) -> Result<u32, Error> {
        let connector = Connector::new(config.clone())?;
        let mut session = connector.connect().await?;
        let migrating = migrate::migrate(&mut session.conn, connector.schema());
        let applied = catch_panic_in_call(migrate::MIGRATE, migrating).await;
        close(session).await;
        applied
    }

    /// The number of pending migrations. Changes nothing.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn missing_migrations(config: &PgConfig) -> Result<u32, Error> {
        let connector = Connector::new(config.clone())?;
        let mut session = connector.connect().await?;
        let counting = migrate::missing(&mut session.conn, connector.schema());
        let missing = catch_panic_in_call(migrate::USE, counting).await;
        close(session).await;
        missing
    }

    /// The SQL that grants `role` the rights that a worker needs, and no others. The schema's owner runs it after migrations.
    ///
    /// # Errors
    /// [`Error`] if the schema or the role is not a plain name (`[a-z_][a-z0-9_]{0,62}`).
    pub fn grants(options: &PgOptions, role: &str) -> Result<String, Error> {
        let (schema, role) = (quote_identifier(&options.schema)?, quote_identifier(role)?);
        Ok(format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.keys TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON {schema}.checkpoints TO {role};\n\
             GRANT SELECT, INSERT ON {schema}.scopes TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.audit TO {role};\n\
             GRANT SELECT, UPDATE ON {schema}.meta TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON {schema}.processed_offsets TO {role};\n\
             GRANT USAGE ON SEQUENCE {schema}.outbox_seq TO {role};\n\
             GRANT SELECT ON {schema}.migrations TO {role};\n"
        ))
    }

    /// The SQL that lets `role` call `complete(token)` in its own transactions, and nothing else of the store: for handlers in
    /// other languages. The schema's owner runs it after migrations.
    ///
    /// # Errors
    /// As for [`grants`](Self::grants).
    pub fn handler_grants(options: &PgOptions, role: &str) -> Result<String, Error> {
        let (schema, role) = (quote_identifier(&options.schema)?, quote_identifier(role)?);
        Ok(format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT EXECUTE ON FUNCTION {schema}.complete(text) TO {role};\n"
        ))
    }

    /// Closes the store's own connections, each when it is idle.
    pub async fn close(&self) {
        self.inner.sessions.pool.close().await;
        if let HandlerPool::Own(pool) = &self.inner.handler_pool {
            pool.close().await;
        }
    }

    /// The number of connections opened for claims and completions so far, for diagnostics.
    pub fn opened_connections(&self) -> u64 {
        self.inner.sessions.pool.opened()
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub(crate) fn schema(&self) -> Arc<str> {
        self.inner.sessions.schema.clone()
    }

    /// Opens connections that listen for notifications.
    pub(crate) fn listener(&self) -> SessionOpener {
        self.inner.connector.listener()
    }

    pub(crate) fn handler_pool(&self) -> &HandlerPool {
        &self.inner.handler_pool
    }

    async fn claim_with(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
        durability: Durability,
    ) -> Vec<Result<Claim, Error>> {
        let PgStoreParts { sessions, contended, unanswered, .. } = &*self.inner;
        claim::claim(sessions, contended, unanswered, scope, terms, batch, durability).await
    }

    async fn call<I, T>(
        &self,
        scope: &Scope,
        items: &[I],
        key: fn(&I) -> Key,
        decide: fn(&mut Record, Moment, &I) -> Step<T>,
        repeatable: bool,
    ) -> Vec<Result<T, Error>>
    where
        I: Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        let decide = Arc::new(decide);
        let batch = LockedBatch {
            items: items.to_vec(),
            key,
            decide,
            contended: None,
            lock_policy: LockPolicy::Wait,
            occupy: false,
            repeatable,
        };
        self.sessions().call(scope, batch).await
    }
}

pub(crate) async fn close(session: Session) {
    if let Err(error) = catch_panic(session.conn.close()).await {
        tracing::debug!(%error, "closing a connection to the Postgres store failed");
    }
}

#[async_trait]
impl Store for PgStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("postgres").durable().shared()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        let checking = check::check(&self.inner.connector, &self.inner.sessions, &self.inner.handler_pool);
        catch_panic_in_call(check::CHECK, checking).await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        self.claim_with(scope, terms, batch, Durability::Synced).await
    }

    /// New claims commit with `synchronous_commit = off`: a crash of the server, or a failover, may forget those of its last
    /// moments. Others, and all other writes, wait for the disk.
    async fn claim_for_commit(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        self.claim_with(scope, terms, batch, Durability::Deferred).await
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        claim::complete(self.sessions(), scope, batch).await
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        self.call(scope, batch, |request| request.lease.key, Record::renew, true).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.call(scope, batch, |request| request.lease.key, Record::fail, true).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.call(scope, batch, |request| request.lease.key, Record::bury, true).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.call(scope, batch, |lease| lease.key, Record::release, true).await
    }

    fn expiring(&self) -> Option<&dyn Expiring> {
        Some(self)
    }
}

#[async_trait]
impl StoreAdmin for PgStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.call(scope, batch, |request| request.key, Record::redrive, true).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        self.call(scope, keys, |key| *key, |record, at, _| record.forget(at), false).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        inspect::inspect(self.sessions(), scope, key).await
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        inspect::list(self.sessions(), scope, query).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        inspect::stats(self.sessions(), scope).await
    }
}

#[async_trait]
impl Expiring for PgStore {
    /// Only one worker purges; for the others this returns 0 meanwhile. Locked rows are skipped.
    async fn purge(&self, limit: u32) -> Result<u64, Error> {
        purge::purge(self.sessions(), limit).await
    }

    async fn expiry_lag(&self) -> Result<Duration, Error> {
        purge::lag(self.sessions()).await
    }

    fn purge_interval(&self) -> Duration {
        Duration::from_secs(30)
    }
}
