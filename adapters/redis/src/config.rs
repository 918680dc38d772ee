//! Configuration of a Redis store: [`RedisConfig`].

use std::ops::RangeInclusive;
use std::time::Duration;

use onceward::Error;

use crate::command::keyspace::Keyspace;
use crate::endpoint::target::RedisTarget;
use crate::endpoint::{RedisEndpoint, RedisServers};
use crate::error::invalid_config;

/// Where Redis or Valkey is, and how the store uses it.
///
/// `Debug` shows neither passwords nor private keys.
///
/// ```
/// use onceward_redis::RedisConfig;
/// use std::time::Duration;
///
/// let mut config = RedisConfig::new("redis://127.0.0.1:6379/0");
/// config.options.response_timeout = Duration::from_secs(3);
/// config.check().unwrap();
///
/// let mut sentinel = RedisConfig::sentinel(["redis://127.0.0.1:26379", "redis://127.0.0.2:26379"], "orders");
/// sentinel.endpoint.password = Some("secret".into());
///
/// let mut cluster = RedisConfig::cluster(["rediss://10.0.0.1:6379"]);
/// cluster.options.wait_replicas = 1;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedisConfig {
    /// The servers, the login and TLS.
    pub endpoint: RedisEndpoint,
    /// How the store uses its connections.
    pub options: RedisOptions,
}

/// How a store uses its connections, however those are made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisOptions {
    /// The beginning of all Redis keys of the store, followed by a colon; 1 to 64 letters, digits and `: - _ .`, default
    /// "ow".
    ///
    /// Redis allots memory in steps: with up to 2 characters a completed key costs 8 or 16 bytes less than with more.
    pub prefix: String,
    /// The time limit of an attempt to connect, including TLS, login and the Sentinels' answers; more than 0 and at most
    /// 10 min, default 2 s. After attempts that timed out, up to four times as long, so that a slow server is reached. It
    /// does not depend on how long a caller waits.
    pub connect_timeout: Duration,
    /// The time limit of a response, after which the outcome is unknown; more than 0 and at most 10 min, default 5 s. It
    /// must be longer than [`wait_timeout`](Self::wait_timeout) if that is used. A connection that does not respond for
    /// 1 s, or a third of this time, is replaced as soon as another one can be opened.
    pub response_timeout: Duration,
    /// The number of replicas that must acknowledge each claim, completion, failure and burial; a write that fewer
    /// acknowledge is reported as unknown. From 0 to 100; default 0: replicas are not waited for.
    ///
    /// It narrows what a failover can lose, and does not close the gap: Redis may promote a replica that has not
    /// acknowledged. A second connection waits, so that renewals and claims are not blocked. With
    /// [`RedisStore::from_connection`](crate::RedisStore::from_connection) there is only one connection, and they are.
    pub wait_replicas: u32,
    /// The time limit for [`wait_replicas`](Self::wait_replicas); more than 0 and at most 10 min, default 1 s.
    pub wait_timeout: Duration,
    /// The number of Redis keys, of any owner, that [`list`](onceward::adapter::StoreAdmin::list) and
    /// [`stats`](onceward::adapter::StoreAdmin::stats) may scan before they fail; default 10 million.
    pub scan_limit: u64,
    /// How completed keys are kept; default "plain". Processes with different layouts can share a store, if all are of a version that
    /// knows them.
    pub layout: RedisLayout,
}

/// How a store keeps completed keys.
///
/// Each process reads both layouts, so that a layout can be changed process by process, under load, in either direction: what
/// is completed stays as it is until it expires. All processes must be of a version that knows compact records before the first one
/// writes them.
///
/// ```
/// use onceward_redis::{RedisConfig, RedisLayout};
///
/// let mut config = RedisConfig::new("redis://127.0.0.1:6379");
/// config.options.layout = RedisLayout::Compact;
/// config.check().unwrap();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisLayout {
    /// Each in a Redis key of its own: 129 bytes, 161 with a fingerprint.
    #[default]
    Plain,
    /// Many in one Redis key: 20 to 24 bytes each. For scopes whose publishers are trusted: anyone who may publish and guesses a key can
    /// find a payload that passes for another's. Keys with a kept result or trace stay plain. Lists show only the beginning of
    /// keys. Not for clusters. The [crate documentation](crate#compact-layout) has the limits.
    Compact,
}

impl RedisConfig {
    /// One server, at `redis://[user[:password]@]host[:port][/database]`, or `rediss://` for TLS, which is always
    /// verified. `valkey://` and `valkeys://` mean the same. The database may also be given as `?db=` or `?database=`; any
    /// other parameter is refused.
    pub fn new(url: impl Into<String>) -> Self {
        Self::with_servers(RedisServers::Standalone(url.into()))
    }

    /// The primary that these Sentinels call `primary`; see [`RedisServers::Sentinel`].
    pub fn sentinel<U: Into<String>>(
        sentinels: impl IntoIterator<Item = U>,
        primary: impl Into<String>,
    ) -> Self {
        let sentinels = sentinels.into_iter().map(Into::into).collect();
        Self::with_servers(RedisServers::Sentinel { sentinels, primary: primary.into() })
    }

    /// The cluster that these nodes belong to; see [`RedisServers::Cluster`].
    pub fn cluster<U: Into<String>>(nodes: impl IntoIterator<Item = U>) -> Self {
        Self::with_servers(RedisServers::Cluster(nodes.into_iter().map(Into::into).collect()))
    }

    fn with_servers(servers: RedisServers) -> Self {
        Self { endpoint: RedisEndpoint::new(servers), options: RedisOptions::default() }
    }

    /// Checks that the values are valid and agree, without connecting.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the value and the fix. It never quotes a URL.
    pub fn check(&self) -> Result<(), Error> {
        RedisTarget::resolve(&self.endpoint)?;
        if self.options.layout == RedisLayout::Compact
            && matches!(self.endpoint.servers, RedisServers::Cluster(_))
        {
            return Err(compact_in_a_cluster());
        }
        self.options.check()
    }
}

/// While a slot moves, the slices of a scope are on two nodes, and neither sees all of them.
pub(crate) fn compact_in_a_cluster() -> Error {
    invalid_config("the compact layout is not for clusters; use the plain layout")
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            prefix: Self::DEFAULT_PREFIX.to_owned(),
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            response_timeout: Duration::from_secs(5),
            wait_replicas: 0,
            wait_timeout: Self::DEFAULT_WAIT_TIMEOUT,
            scan_limit: 10_000_000,
            layout: RedisLayout::Plain,
        }
    }
}

impl RedisOptions {
    /// The default of [`prefix`](Self::prefix).
    pub const DEFAULT_PREFIX: &str = "ow";
    /// The default of [`connect_timeout`](Self::connect_timeout).
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// The default of [`wait_timeout`](Self::wait_timeout).
    pub const DEFAULT_WAIT_TIMEOUT: Duration = Duration::from_secs(1);
    /// The range of [`wait_replicas`](Self::wait_replicas).
    pub const WAIT_REPLICAS: RangeInclusive<u32> = 0..=100;

    /// Checks that the values are valid and agree.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the value and the fix.
    pub fn check(&self) -> Result<(), Error> {
        for (name, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("wait_timeout", self.wait_timeout),
        ] {
            if timeout.is_zero() || timeout > Duration::from_secs(600) {
                return Err(invalid_config(format!(
                    "{name} is {timeout:?}; it must be more than 0 and at most 10 min"
                )));
            }
        }
        if !Self::WAIT_REPLICAS.contains(&self.wait_replicas) {
            return Err(invalid_config(format!("wait_replicas is {}; at most 100", self.wait_replicas)));
        }
        if self.wait_replicas > 0 && self.wait_timeout >= self.response_timeout {
            return Err(invalid_config(format!(
                "wait_timeout is {:?}, which leaves no time within response_timeout, {:?}; shorten the former or lengthen \
                 the latter",
                self.wait_timeout, self.response_timeout
            )));
        }
        Keyspace::new(&self.prefix).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::ClientCertificate;

    #[test]
    fn no_password_is_ever_shown() {
        let mut with_fields = RedisConfig::new("redis://127.0.0.1");
        with_fields.endpoint.username = Some("app".into());
        with_fields.endpoint.password = Some("hunter2".into());
        let mut sentinel = RedisConfig::sentinel(["redis://:hunter2@127.0.0.1:26379"], "orders");
        sentinel.endpoint.password = Some("hunter2".into());
        let mut cluster = RedisConfig::cluster(["rediss://:hunter2@127.0.0.1"]);
        cluster.endpoint.client_certificate = Some(ClientCertificate::new("hunter2", "hunter2"));
        for config in [RedisConfig::new("redis://app:hunter2@127.0.0.1/1"), with_fields, sentinel, cluster] {
            assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
        }
        for url in [
            "hunter2",
            "redis://:hunter2",
            "http://:hunter2@host",
            "redis://:hun#hunter2@host",
            "redis://:hun/hunter2@host",
        ] {
            let config = RedisConfig::new(url);
            let error = config.check().unwrap_err();
            assert!(!format!("{error} {error:?} {config:?}").contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn invalid_options_are_refused() {
        let checked = |change: fn(&mut RedisOptions)| {
            let mut options = RedisOptions::default();
            change(&mut options);
            options.check()
        };
        assert!(checked(|_| ()).is_ok());
        assert!(checked(|options| options.response_timeout = Duration::ZERO).is_err());
        let too_long = Duration::from_secs(5);
        assert!(RedisOptions { wait_timeout: too_long, ..RedisOptions::default() }.check().is_ok(), "unused");
        let waits = RedisOptions { wait_timeout: too_long, wait_replicas: 1, ..RedisOptions::default() };
        assert!(waits.check().is_err());
        assert!(checked(|options| options.prefix = "a b".to_owned()).is_err());
    }
}
