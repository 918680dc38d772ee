//! Test support: harnesses for the store suite, and a worker that retries.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, KeyState, Lease, OwnerToken,
};
use onceward::testing::store::{StoreHarness, Timing};
use onceward::{Error, Key, Scope, Store};
use onceward_redis::{RedisConfig, RedisLayout, RedisStore};
use onceward_test_servers::redis::RedisCluster;

/// A keyspace that no other test uses.
pub(crate) struct Part {
    config: RedisConfig,
}

impl Part {
    pub(crate) fn of(config: RedisConfig) -> Self {
        Self { config: own_part(config) }
    }
}

/// Gives `config` a prefix that no other test of this process has.
pub(crate) fn own_part(config: RedisConfig) -> RedisConfig {
    static PARTS: AtomicU64 = AtomicU64::new(0);
    config.prefix(format!("test-{}", PARTS.fetch_add(1, Ordering::Relaxed)))
}

#[async_trait]
impl StoreHarness for Part {
    type Store = RedisStore;

    /// Each handle has a connection of its own.
    async fn store(&self) -> RedisStore {
        open(&self.config)
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    fn timing(&self) -> Timing {
        Timing::REAL
    }

    fn listed_key(&self, key: Key, state: KeyState) -> Key {
        listed_key(&self.config, key, state)
    }
}

/// The key that a list shows.
pub(crate) fn listed_key(config: &RedisConfig, key: Key, state: KeyState) -> Key {
    if config.options.layout == RedisLayout::Compact && state == KeyState::Completed {
        beginning_of(key)
    } else {
        key
    }
}

/// What a compact record keeps of its key.
pub(crate) fn beginning_of(key: Key) -> Key {
    let mut bytes = *key.as_bytes();
    bytes[8] &= 0x0f;
    bytes[9..].fill(0);
    Key::from_bytes(bytes)
}

/// The permissions of a worker, as in the README.
pub(crate) const ACL_TO_WORK: &str = "~ow:* +eval +evalsha +mget +get +set +time +pttl +info";

/// The further permissions of workers where any writes compact records.
pub(crate) const ACL_FOR_COMPACT: &str = "+hget +hset +hdel +hlen +hgetall +del +pexpireat";

/// The further permissions for lists and statistics, and for dead letters.
pub(crate) const ACL_FOR_TOOLS: &str = "+scan +rpush +lpush +lrange +lindex +ltrim +llen +sadd +smismember";

pub(crate) const LEASE: Duration = Duration::from_secs(60);

/// The longest time for which a fault may block the store.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Changes options and endpoint in a chain.
pub(crate) trait ConfigExt: Sized {
    fn with(self, change: impl FnOnce(&mut RedisConfig)) -> Self;

    fn prefix(self, prefix: impl Into<String>) -> Self {
        self.with(|config| config.options.prefix = prefix.into())
    }

    fn response_timeout(self, timeout: Duration) -> Self {
        self.with(|config| config.options.response_timeout = timeout)
    }

    fn connect_timeout(self, timeout: Duration) -> Self {
        self.with(|config| config.options.connect_timeout = timeout)
    }

    fn wait_replicas(self, count: u32) -> Self {
        self.with(|config| config.options.wait_replicas = count)
    }

    fn wait_timeout(self, timeout: Duration) -> Self {
        self.with(|config| config.options.wait_timeout = timeout)
    }

    fn layout(self, layout: RedisLayout) -> Self {
        self.with(|config| config.options.layout = layout)
    }

    fn scan_limit(self, limit: u64) -> Self {
        self.with(|config| config.options.scan_limit = limit)
    }

    fn username(self, username: &str) -> Self {
        self.with(|config| config.endpoint.username = Some(username.to_owned()))
    }

    fn password(self, password: &str) -> Self {
        self.with(|config| config.endpoint.password = Some(password.to_owned()))
    }

    fn password_from(self, provider: impl Fn() -> Result<String, Error> + Send + Sync + 'static) -> Self {
        self.with(|config| config.endpoint.password_from = Some(Arc::new(provider)))
    }

    fn ca(self, pem: impl Into<Vec<u8>>) -> Self {
        self.with(|config| config.endpoint.ca = Some(pem.into()))
    }
}

impl ConfigExt for RedisConfig {
    fn with(mut self, change: impl FnOnce(&mut RedisConfig)) -> Self {
        change(&mut self);
        self
    }
}

/// Opens a store whose configuration must be valid.
pub(crate) fn open(config: &RedisConfig) -> RedisStore {
    RedisStore::open(config.clone()).unwrap()
}

pub(crate) fn config(url: &str) -> RedisConfig {
    RedisConfig::new(url)
}

pub(crate) fn scope() -> Scope {
    Scope::parse("billing").unwrap()
}

pub(crate) fn terms() -> ClaimTerms {
    ClaimTerms { lease: LEASE, max_attempts: 3, ttl: Duration::from_secs(3_600) }
}

pub(crate) fn key(n: u64) -> Key {
    Key::of(&scope(), n.to_string()).unwrap()
}

pub(crate) fn token() -> OwnerToken {
    Entropy::system().token()
}

pub(crate) fn request(n: u64) -> ClaimRequest {
    ClaimRequest { key: key(n), owner: token(), fingerprint: None, generation: 0 }
}

pub(crate) fn completion(lease: Lease) -> CompleteRequest {
    CompleteRequest::new(lease, terms().ttl)
}

/// Makes one claim, without retries.
pub(crate) async fn claim(store: &RedisStore, request: ClaimRequest) -> Result<Claim, Error> {
    store.claim(&scope(), &terms(), &[request]).await.pop().unwrap()
}

/// Makes one completion, without retries.
pub(crate) async fn complete(store: &RedisStore, lease: Lease) -> Result<Completion, Error> {
    store.complete(&scope(), &[completion(lease)]).await.pop().unwrap()
}

pub(crate) fn lease_of(claim: Claim) -> Lease {
    match claim {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("expected a claim, got {other:?}"),
    }
}

/// Retries a batch until each item has a result, as the pipeline does: with the same tokens, and only retryable errors. Returns
/// the number of errors.
pub(crate) async fn insist<I: Clone, T>(
    items: &[I],
    ask: impl AsyncFn(Vec<I>) -> Vec<Result<T, Error>>,
) -> (Vec<T>, usize) {
    let mut answers: Vec<Option<T>> = items.iter().map(|_| None).collect();
    let end = Instant::now() + PATIENCE;
    let mut errors = 0;
    loop {
        let open: Vec<usize> = (0..items.len()).filter(|place| answers[*place].is_none()).collect();
        if open.is_empty() {
            return (answers.into_iter().map(Option::unwrap).collect(), errors);
        }
        let batch = open.iter().map(|place| items[*place].clone()).collect();
        for (place, answer) in open.into_iter().zip(ask(batch).await) {
            match answer {
                Ok(answer) => answers[place] = Some(answer),
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    assert!(Instant::now() < end, "no answer within {PATIENCE:?}: {error:?}");
                    errors += 1;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Claims and completes `keys` in batches of 50, whatever happens to the server in the meantime, and asserts that no claim is
/// lost or issued twice. Returns the number of errors.
pub(crate) async fn work_through(store: &RedisStore, keys: std::ops::Range<u64>) -> usize {
    let mut errors = 0;
    let numbers: Vec<u64> = keys.collect();
    for numbers in numbers.chunks(50) {
        let requests: Vec<ClaimRequest> = numbers.iter().map(|n| request(*n)).collect();
        let (claims, claim_errors) =
            insist(&requests, async |batch: Vec<ClaimRequest>| store.claim(&scope(), &terms(), &batch).await)
                .await;
        let leases: Vec<CompleteRequest> = claims
            .into_iter()
            .map(|claim| {
                let Claim::Claimed(claimed) = claim else { panic!("expected a claim, got {claim:?}") };
                assert_eq!((claimed.attempt, claimed.lost), (1, 0));
                completion(claimed.lease)
            })
            .collect();
        let (completions, complete_errors) =
            insist(&leases, async |batch: Vec<CompleteRequest>| store.complete(&scope(), &batch).await).await;
        for completion in completions {
            assert!(matches!(completion, Completion::Completed | Completion::Repeated), "{completion:?}");
        }
        errors += claim_errors + complete_errors;
    }
    errors
}

/// Asserts that all of `keys` are completed, for another worker with another connection.
pub(crate) async fn assert_completed(store: &RedisStore, keys: std::ops::Range<u64>) {
    let requests: Vec<ClaimRequest> = keys.map(request).collect();
    let ask = async |batch: Vec<ClaimRequest>| store.claim(&scope(), &terms(), &batch).await;
    for (n, claim) in insist(&requests, ask).await.0.into_iter().enumerate() {
        assert!(matches!(claim, Claim::Completed { .. }), "key {n} is not completed: {claim:?}");
    }
}

/// Retries until the store responds.
pub(crate) async fn answered<T>(ask: impl AsyncFn() -> Result<T, Error>) -> T {
    insist(&[()], async |_| vec![ask().await]).await.0.pop().unwrap()
}

/// The slot of a bucket byte: CRC16 (XMODEM) of one byte.
pub(crate) fn slot(byte: u8) -> u16 {
    let mut crc = u16::from(byte) << 8;
    for _ in 0..8 {
        crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
    }
    crc % 16_384
}

/// The bucket of a key, as the adapter names it.
pub(crate) fn bucket(key: &Key) -> u8 {
    0x80 | (key.as_bytes()[0] & 0b0111_1011)
}

/// The node of each bucket.
pub(crate) fn owners(cluster: &RedisCluster) -> HashMap<u8, usize> {
    let buckets: HashSet<u8> = (0..=u8::MAX).map(|first| bucket(&Key::from_bytes([first; 16]))).collect();
    buckets.into_iter().map(|bucket| (bucket, cluster.owner_of(slot(bucket)))).collect()
}
