//! Maps `[store.redis]` to its adapter.

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
    let mut options = match (store.topology, &store.primary) {
        (RedisTopology::Standalone, _) => RedisConfig::from_url(store.url.expose())?,
        (RedisTopology::Cluster, _) => RedisConfig::cluster(addresses())?,
        (RedisTopology::Sentinel, primary) => {
            RedisConfig::sentinel(addresses(), primary.as_deref().unwrap_or_default())?
        }
    };
    let login = Login::read(config, "store.redis", store.credentials())?;
    if let Some(username) = login.username {
        options = options.username(username);
    }
    if let Some(password) = login.password {
        options = options.password(password.expose());
    }
    if let Some(file) = store.credentials().password_file {
        // Read for each new connection: it may have been replaced.
        let path = config.resolve(file);
        options = options.password_from(move || Ok(password_in(&path, "store.redis")?.expose().to_owned()));
    }
    if let Some(file) = &store.ca_file {
        let pem = certificates(config, "store.redis.ca_file", file)?;
        options = options.ca(pem);
    }
    // A little less than the limit of a call, so that what was wrong is known before the call is given up.
    let limit = store.limits().timeout.get().mul_f64(0.9);
    let options = options
        .allow_plaintext(store.allow_plaintext)
        .prefix(store.prefix.as_str())
        .connect_timeout(CONNECT_TIMEOUT.min(limit))
        .response_timeout(limit)
        .wait_replicas(store.wait_replicas)
        .wait_timeout(WAIT_TIMEOUT.min(limit / 3));
    onceward_redis::RedisStore::new(&options)
}
