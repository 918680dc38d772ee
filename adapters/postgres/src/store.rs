//! The store: [`PgStore`].

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

use crate::claim::contended::ContendedKeys;
use crate::claim::row_locks::{LockPolicy, LockedBatch};
use crate::claim::single_statement;
use crate::claim::unanswered::UnansweredClaims;
use crate::config::{PgConfig, quoted};
use crate::guard::{catch_panic, catch_panic_in_call};
use crate::handler_pool::HandlerPool;
use crate::pool::{Session, SessionOpener};
use crate::session::Sessions;
use crate::{check, claim, inspect, migrate, purge};

/// Keeps keys in a Postgres schema. Clones share one pool.
///
/// - A batch of new claims, and a batch of completions, is one statement. Keys that are known already are decided
///   under row locks, taken in the order of the keys.
/// - The server's clock decides leases and TTLs.
/// - A row that another transaction holds for longer than [`lock_timeout`](PgConfig::lock_timeout) counts as in
///   progress for a claim; the batch's other keys go on.
/// - Completions say `synchronous_commit = on` themselves, whatever the role or the database is set to.
#[derive(Clone)]
pub struct PgStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: PgConfig,
    sessions: Sessions,
    effects: HandlerPool,
    held: Arc<ContendedKeys>,
    doubts: UnansweredClaims,
}

impl std::fmt::Debug for PgStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgStore").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl PgStore {
    /// Connects, and brings the schema up to date if the configuration says so.
    ///
    /// # Errors
    /// [`Error`] if the configuration contradicts itself, the server cannot be reached, or the schema was written by a
    /// newer version or holds keys of another encoding.
    pub async fn connect(config: PgConfig) -> Result<Self, Error> {
        config.validate()?;
        let schema = config.schema_name().to_owned();
        let mut session = config.connect().await?;
        if config.migrate {
            let applied =
                catch_panic_in_call(migrate::MIGRATE, migrate::migrate(&mut session.conn, &schema)).await?;
            if applied > 0 {
                tracing::info!(place = %config.place(), schema, applied, "the Postgres store's schema is up to date");
            }
        }
        catch_panic_in_call(migrate::USE, migrate::check(&mut session.conn, &schema)).await?;
        close(session).await;
        let schema = quoted(&schema)?;
        let pool = config.pool(single_statement::statements(&schema));
        let sessions = Sessions::new(pool, schema, config.statement_timeout);
        let effects = match config.effects.clone() {
            Some(pool) => HandlerPool::Application(pool),
            None => HandlerPool::Own(config.effects_pool()),
        };
        let (held, doubts) = (Arc::default(), UnansweredClaims::default());
        Ok(Self { inner: Arc::new(Inner { config, sessions, effects, held, doubts }) })
    }

    /// Brings the schema up to date, whatever the configuration says, and answers how many steps that took.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn migrate(config: &PgConfig) -> Result<u32, Error> {
        config.validate()?;
        let mut session = config.connect().await?;
        let applied =
            catch_panic_in_call(migrate::MIGRATE, migrate::migrate(&mut session.conn, config.schema_name()))
                .await;
        close(session).await;
        applied
    }

    /// How many steps [`migrate`](Self::migrate) would take; 0 if the schema is up to date. Changes nothing.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn missing_migrations(config: &PgConfig) -> Result<u32, Error> {
        config.validate()?;
        let mut session = config.connect().await?;
        let missing =
            catch_panic_in_call(migrate::USE, migrate::missing(&mut session.conn, config.schema_name()))
                .await;
        close(session).await;
        missing
    }

    /// The SQL that gives `role` what a worker needs, and no more. To be run by the schema's owner, after migrations.
    ///
    /// # Errors
    /// [`Error`] if the schema or the role is no plain name (`[a-z_][a-z0-9_]{0,62}`).
    pub fn grants(config: &PgConfig, role: &str) -> Result<String, Error> {
        config.validate()?;
        let (schema, role) = (quoted(config.schema_name())?, quoted(role)?);
        Ok(format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.keys TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON {schema}.checkpoints TO {role};\n\
             GRANT SELECT, INSERT ON {schema}.scopes TO {role};\n\
             GRANT SELECT, UPDATE ON {schema}.meta TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON {schema}.processed_offsets TO {role};\n\
             GRANT USAGE ON SEQUENCE {schema}.outbox_seq TO {role};\n\
             GRANT SELECT ON {schema}.migrations TO {role};\n"
        ))
    }

    /// The SQL that lets `role` call `complete(token)` in transactions of its own, and nothing else of the store: for
    /// handlers in other languages. To be run by the schema's owner, after migrations.
    ///
    /// # Errors
    /// As for [`grants`](Self::grants).
    pub fn handler_grants(config: &PgConfig, role: &str) -> Result<String, Error> {
        config.validate()?;
        let (schema, role) = (quoted(config.schema_name())?, quoted(role)?);
        Ok(format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT EXECUTE ON FUNCTION {schema}.complete(text) TO {role};\n"
        ))
    }

    /// Closes the store's own connections, when they are idle.
    pub async fn close(&self) {
        self.inner.sessions.pool.close().await;
        if let HandlerPool::Own(pool) = &self.inner.effects {
            pool.close().await;
        }
    }

    /// How many connections the store has opened for claims and completions since it was connected: a diagnostic figure.
    pub fn opened_connections(&self) -> u64 {
        self.inner.sessions.pool.opened()
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub(crate) fn schema(&self) -> Arc<str> {
        self.inner.sessions.schema.clone()
    }

    /// For one connection that listens.
    pub(crate) fn listener(&self) -> SessionOpener {
        self.inner.config.listener()
    }

    pub(crate) fn effects(&self) -> &HandlerPool {
        &self.inner.effects
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
            held: None,
            first: LockPolicy::Wait,
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
        let checking = check::check(&self.inner.config, &self.inner.sessions, &self.inner.effects);
        catch_panic_in_call(check::CHECK, checking).await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        claim::claim(self.sessions(), &self.inner.held, &self.inner.doubts, scope, terms, batch).await
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
    /// One cleaner at a time: while another worker purges, this answers 0. Rows that are in use are passed over.
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
