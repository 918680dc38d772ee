//! What the tests share: the harness for the store suite.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use onceward::testing::store::{StoreHarness, Timing};
use onceward_redis::{RedisConfig, RedisStore};
use onceward_test_servers::redis::Redis;

/// A part of the shared server that nobody else uses.
pub(crate) struct Standalone {
    config: RedisConfig,
}

impl Standalone {
    pub(crate) fn new() -> Self {
        Self { config: own_part(RedisConfig::from_url(&Redis::shared().url()).unwrap()) }
    }
}

/// Gives `config` a prefix that no other test of this process has.
pub(crate) fn own_part(config: RedisConfig) -> RedisConfig {
    static PARTS: AtomicU64 = AtomicU64::new(0);
    config.prefix(format!("test-{}", PARTS.fetch_add(1, Ordering::Relaxed)))
}

#[async_trait]
impl StoreHarness for Standalone {
    type Store = RedisStore;

    /// Each handle has a connection of its own.
    async fn store(&self) -> RedisStore {
        RedisStore::new(&self.config).unwrap()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    fn timing(&self) -> Timing {
        Timing::REAL
    }
}
