//! The store: [`RedisStore`].

use std::sync::Arc;

use async_trait::async_trait;
use onceward::store::{
    Advice, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, FailRequest,
    Failure, KeyRecord, KeyStats, Lease, ListQuery, Redrive, RedriveRequest, RenewRequest, Renewal,
    StoreAdmin, StoreCapabilities,
};
use onceward::{Error, Key, Scope, Store};

use crate::ask::{Forget, Inspect};
use crate::call::Caller;
use crate::config::RedisConfig;
use crate::wire::Writer;

/// Keeps keys in Redis or Valkey; see the [crate documentation](crate) for what it promises and what it does not.
///
/// A clone is another handle to the same connection. It connects with the first call, and again after each lost
/// connection.
///
/// ```no_run
/// # async fn run() -> Result<(), onceward::Error> {
/// use onceward::Store;
/// use onceward_redis::{RedisConfig, RedisStore};
///
/// let store = RedisStore::new(&RedisConfig::from_url("redis://127.0.0.1:6379")?)?;
/// for advice in store.check().await? {
///     println!("{}", advice.text);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RedisStore {
    pub(crate) caller: Arc<Caller>,
}

impl RedisStore {
    /// A store as `config` says. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if values in `config` disagree, or a certificate is none.
    pub fn new(config: &RedisConfig) -> Result<Self, Error> {
        Ok(Self { caller: Arc::new(Caller::new(config)?) })
    }
}

#[async_trait]
impl Store for RedisStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("redis").durable().shared()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        self.caller.check().await
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        let mut head = Writer::default();
        head.duration(terms.lease);
        head.duration(terms.ttl);
        head.u32(terms.max_attempts);
        self.caller.ask(scope, head.as_bytes(), batch).await
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        self.caller.ask(scope, &[], batch).await
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        self.caller.ask(scope, &[], batch).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.caller.ask(scope, &[], batch).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.caller.ask(scope, &[], batch).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.caller.ask(scope, &[], batch).await
    }
}

#[async_trait]
impl StoreAdmin for RedisStore {
    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.caller.ask(scope, &[], batch).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        let batch: Vec<Forget> = keys.iter().copied().map(Forget).collect();
        self.caller.ask(scope, &[], &batch).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        self.caller.ask(scope, &[], &[Inspect(*key)]).await.pop().unwrap_or(Ok(None))
    }

    async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        self.caller.list(scope, query).await
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        self.caller.stats(scope).await
    }
}
