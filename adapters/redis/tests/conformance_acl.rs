//! The store suite as a user with the documented permissions and no others.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::OnceLock;

use async_trait::async_trait;
use onceward::Key;
use onceward::store::KeyState;
use onceward::testing::store::{StoreHarness, Timing};
use onceward_redis::{RedisConfig, RedisLayout, RedisStore};
use onceward_test_servers::redis::Redis;
use support::{ACL_FOR_COMPACT, ACL_FOR_TOOLS, ACL_TO_WORK, ConfigExt, config, listed_key, open};

/// A separate user for each test, because permissions depend on the prefix.
struct Limited {
    config: RedisConfig,
}

fn limited(layout: RedisLayout) -> Limited {
    static USERS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    static SERVER: OnceLock<Redis> = OnceLock::new();
    let server = SERVER.get_or_init(Redis::start);
    let name = format!("user-{}", USERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let rights = format!(
        "{ACL_TO_WORK} {ACL_FOR_TOOLS} {}",
        if layout == RedisLayout::Compact { ACL_FOR_COMPACT } else { "" }
    )
    .replace("~ow:*", &format!("~{name}:*"));
    let mut arguments = vec!["ACL", "SETUSER", &name, "reset", "on", ">pass"];
    arguments.extend(rights.split_whitespace());
    server.cli(&arguments);
    Limited { config: config(&server.url()).username(&name).password("pass").prefix(&name).layout(layout) }
}

#[async_trait]
impl StoreHarness for Limited {
    type Store = RedisStore;

    async fn store(&self) -> RedisStore {
        open(&self.config)
    }

    async fn advance(&self, by: std::time::Duration) {
        tokio::time::sleep(by).await;
    }

    fn timing(&self) -> Timing {
        Timing::REAL
    }

    fn listed_key(&self, key: Key, state: KeyState) -> Key {
        listed_key(&self.config, key, state)
    }
}

onceward::store_conformance!(limited(RedisLayout::Plain));
onceward::checkpoint_store_conformance!(limited(RedisLayout::Plain));
onceward::audit_log_conformance!(limited(RedisLayout::Plain));

mod compact {
    use super::{RedisLayout, limited};

    onceward::store_conformance!(limited(RedisLayout::Compact));
}
