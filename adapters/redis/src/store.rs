//! The store, and how it is opened: [`RedisStore`].

use std::sync::Arc;

use async_trait::async_trait;
use onceward::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, FailRequest,
    Failure, KeyRecord, KeyStats, Lease, ListQuery, Redrive, RedriveRequest, RenewRequest, Renewal,
    StoreAdmin, StoreCapabilities,
};
use onceward::{Error, Key, Scope, Store};

use crate::command::codec::ArgumentWriter;
use crate::command::operator::Forget;
use crate::config::{RedisConfig, RedisLayout, RedisOptions};
use crate::executor::ScriptExecutor;
use crate::network::Network;
use crate::record::ReadRecord;

/// Keeps keys in Redis or Valkey; see the [crate documentation](crate) for what it promises and what it does not.
///
/// A clone is another handle to the same connections. It connects at the first call, and reconnects when a connection is
/// lost.
///
/// ```no_run
/// # async fn run() -> Result<(), onceward::Error> {
/// use onceward::Store;
/// use onceward_redis::{RedisConfig, RedisStore};
///
/// let store = RedisStore::open(RedisConfig::new("redis://127.0.0.1:6379"))?;
/// for advice in store.check().await? {
///     println!("{}", advice.text);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RedisStore {
    pub(crate) executor: Arc<ScriptExecutor>,
}

impl RedisStore {
    /// Opens the store of `config`. It connects at the first call.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if values of `config` are invalid or disagree, or a certificate
    /// is invalid.
    pub fn open(config: RedisConfig) -> Result<Self, Error> {
        Self::on(Network::open(&config)?, config.options)
    }

    /// Opens a store over a client that the caller has built, with its address, login and TLS. Whether the login is sent
    /// over TLS is not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if `options` are invalid.
    pub fn from_client(client: redis::Client, options: RedisOptions) -> Result<Self, Error> {
        Self::on(Network::from_client(client, &options), options)
    }

    /// Opens a store over a connection that the caller has opened, and may share. Its own timeouts apply, not those of
    /// `options`: the client's default of 500 ms for a response is short, and each timeout leaves an outcome unknown.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if `options` are invalid.
    pub fn from_connection(
        connection: redis::aio::ConnectionManager,
        options: RedisOptions,
    ) -> Result<Self, Error> {
        Self::on(Network::from_connection(connection, &options), options)
    }

    fn on(network: Network, options: RedisOptions) -> Result<Self, Error> {
        Ok(Self { executor: Arc::new(ScriptExecutor::new(network, options)?) })
    }
}

#[async_trait]
impl Store for RedisStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("redis").durable().shared()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        self.executor.check().await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        let mut head = ArgumentWriter::default();
        head.duration(terms.lease);
        head.duration(terms.ttl);
        head.u32(terms.max_attempts);
        self.executor.execute(scope, head.as_bytes(), batch).await
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        if self.executor.options.layout == RedisLayout::Compact
            && !batch.is_empty()
            && let Err(error) = self.executor.ensure_compact_format().await
        {
            return batch.iter().map(|_| Err(error.clone())).collect();
        }
        self.executor.execute(scope, &[], batch).await
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        self.executor.execute(scope, &[], batch).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.executor.execute(scope, &[], batch).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.executor.execute(scope, &[], batch).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.executor.execute(scope, &[], batch).await
    }
}

#[async_trait]
impl StoreAdmin for RedisStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.executor.execute(scope, &[], batch).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        let batch: Vec<Forget> = keys.iter().copied().map(Forget).collect();
        self.executor.execute(scope, &[], &batch).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        self.executor.execute(scope, &[], &[ReadRecord(*key)]).await.pop().unwrap_or(Ok(None))
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        self.executor.list(scope, query).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        self.executor.stats(scope).await
    }
}
