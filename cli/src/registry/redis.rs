//! Maps `[store.redis]` to its adapter.

use std::sync::Arc;
use std::time::Duration;

use onceward::Error;
use onceward_redis::RedisConfig;

use super::credentials::{Login, certificates, password_in};
use crate::config::{Address, Config, RedisStore, RedisTopology};

/// How long an attempt to connect may take at first. It does not hold up calls beyond their own limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// For how long replicas are waited for, where they are.
const WAIT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn open(config: &Config, store: &RedisStore) -> Result<onceward_redis::RedisStore, Error> {
    let addresses = || [&store.url].into_iter().chain(&store.nodes).map(Address::expose);
    let mut redis = match (store.topology, &store.primary) {
        (RedisTopology::Standalone, _) => RedisConfig::new(store.url.expose()),
        (RedisTopology::Cluster, _) => RedisConfig::cluster(addresses()),
        (RedisTopology::Sentinel, primary) => {
            RedisConfig::sentinel(addresses(), primary.as_deref().unwrap_or_default())
        }
    };
    let login = Login::read(config, "store.redis", store.credentials())?;
    redis.endpoint.username = login.username.map(Into::into);
    redis.endpoint.password = login.password.map(|password| password.expose().to_owned());
    if let Some(file) = store.credentials().password_file {
        // Read before each new connection: it may have been replaced.
        let path = config.resolve(file);
        let read = move || Ok(password_in(&path, "store.redis")?.expose().to_owned());
        redis.endpoint.password_from = Some(Arc::new(read));
    }
    if let Some(file) = &store.ca_file {
        redis.endpoint.ca = Some(certificates(config, "store.redis.ca_file", file)?);
    }
    redis.endpoint.allow_plaintext = store.allow_plaintext;
    // A little less than the limit of a call, so that the cause is known before the call is given up.
    let limit = store.limits().timeout.get().mul_f64(0.9);
    redis.options.prefix = store.prefix.clone();
    redis.options.connect_timeout = CONNECT_TIMEOUT.min(limit);
    redis.options.response_timeout = limit;
    redis.options.wait_replicas = store.wait_replicas;
    redis.options.wait_timeout = WAIT_TIMEOUT.min(limit / 3);
    onceward_redis::RedisStore::open(redis)
}
