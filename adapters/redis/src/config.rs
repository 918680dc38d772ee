//! Where the server is and how it is used: [`RedisConfig`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use onceward::{Error, ErrorKind};
use redis::aio::ConnectionManager;
use url::Url;

use crate::address::{alike, database, is_tls, parse, parse_all, percent_decode, place};
use crate::keys::Keyspace;

/// How to reach Redis or Valkey, and how to use it.
///
/// `Debug` shows neither passwords nor private keys.
///
/// ```
/// use onceward_redis::RedisConfig;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), onceward::Error> {
/// let config = RedisConfig::from_url("redis://127.0.0.1:6379/0")?.response_timeout(Duration::from_secs(3));
/// let sentinel = RedisConfig::sentinel(["redis://10.0.0.1:26379", "redis://10.0.0.2:26379"], "orders")?;
/// let cluster = RedisConfig::cluster(["rediss://10.0.0.1:6379"])?.wait_replicas(1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) servers: Servers,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) password_from: Option<PasswordProvider>,
    pub(crate) sentinel_username: Option<String>,
    pub(crate) sentinel_password: Option<String>,
    pub(crate) database: Option<i64>,
    pub(crate) tls: Tls,
    pub(crate) allow_plaintext: bool,
    pub(crate) settings: Settings,
}

/// The password for a connection that is opened now.
pub(crate) type PasswordProvider = Arc<dyn Fn() -> Result<String, Error> + Send + Sync>;

/// How a store uses its connection, however that was made.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) prefix: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) wait_replicas: u32,
    pub(crate) wait_timeout: Duration,
    pub(crate) scan_limit: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "ow".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
            wait_replicas: 0,
            wait_timeout: Duration::from_secs(1),
            scan_limit: 10_000_000,
        }
    }
}

/// Which servers, and who knows the primary.
#[derive(Clone)]
pub(crate) enum Servers {
    Standalone(Url),
    Sentinel { sentinels: Vec<Url>, primary: String },
    Cluster(Vec<Url>),
    Client(redis::Client),
    Manager(ConnectionManager),
}

/// Certificates in PEM.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl RedisConfig {
    /// One server, at `redis://[user[:password]@]host[:port][/database]`, or `rediss://` for TLS, which is then always
    /// verified. `valkey://` and `valkeys://` mean the same. The database may also be given as `?db=` or `?database=`; any
    /// other parameter is refused.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if `url` is no such URL. The error does not repeat it.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        Ok(Self::of(Servers::Standalone(parse(url)?)))
    }

    /// The primary that these Sentinels name `primary`, looked up again after each lost connection and failover. User,
    /// password and TLS for the primary come from the methods below; those in the URLs, which must all be alike, are for
    /// the Sentinels. A database in the URLs is that of the primary.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no URL or one is none, or if `primary` is empty.
    pub fn sentinel<'u>(
        sentinels: impl IntoIterator<Item = &'u str>,
        primary: impl Into<String>,
    ) -> Result<Self, Error> {
        let (sentinels, primary) = (parse_all(sentinels)?, primary.into());
        if primary.is_empty() {
            return Err(wrong(
                "the name of the Sentinels' primary is empty; it is in their \"sentinel monitor\"",
            ));
        }
        Ok(Self::of(Servers::Sentinel { sentinels, primary }))
    }

    /// The cluster that these nodes belong to; a few suffice. User and password must be alike for all.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no URL or one is none.
    pub fn cluster<'u>(nodes: impl IntoIterator<Item = &'u str>) -> Result<Self, Error> {
        Ok(Self::of(Servers::Cluster(parse_all(nodes)?)))
    }

    /// A client of the caller's own, with its address, login and TLS; the timeouts are those of this configuration.
    pub fn from_client(client: redis::Client) -> Self {
        Self::of(Servers::Client(client))
    }

    /// A connection of the caller's own, which it may share with others. Its timeouts are its own: the client's
    /// default of 500 ms for a response is short, and each one that passes makes an outcome unknown.
    pub fn from_connection(connection: ConnectionManager) -> Self {
        Self::of(Servers::Manager(connection))
    }

    fn of(servers: Servers) -> Self {
        Self {
            servers,
            username: None,
            password: None,
            password_from: None,
            sentinel_username: None,
            sentinel_password: None,
            database: None,
            tls: Tls::default(),
            allow_plaintext: false,
            settings: Settings::default(),
        }
        .with_credentials_of_url()
    }

    /// Takes user and password out of the URL, so that there is one place for them.
    fn with_credentials_of_url(mut self) -> Self {
        let (url, of_sentinels) = match &self.servers {
            Servers::Standalone(url) => (Some(url), false),
            Servers::Sentinel { sentinels, .. } => (sentinels.first(), true),
            Servers::Cluster(nodes) => (nodes.first(), false),
            Servers::Client(_) | Servers::Manager(_) => (None, false),
        };
        let Some(url) = url else { return self };
        let decoded = |text: &str| percent_decode(text);
        let username = (!url.username().is_empty()).then(|| decoded(url.username()));
        let password = url.password().map(decoded);
        if of_sentinels {
            (self.sentinel_username, self.sentinel_password) = (username, password);
        } else {
            (self.username, self.password) = (username, password);
        }
        // Sentinels have no databases: theirs is that of the primary.
        self.database = database(url);
        self
    }

    /// The user of the ACL, where it is not in the URL.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The password, where it is not in the URL.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Asks `provider` for the password before each new connection, instead of one that is fixed: for passwords that change
    /// while the program runs, and for tokens. It may block, on a file for example. Its error is that of the call that
    /// needed the connection.
    #[must_use]
    pub fn password_from(
        mut self,
        provider: impl Fn() -> Result<String, Error> + Send + Sync + 'static,
    ) -> Self {
        self.password_from = Some(Arc::new(provider));
        self
    }

    /// Sends user and password also without TLS to a server on another host, where anybody on the way can read them; also to
    /// a primary that Sentinels name, or a node that the cluster does. Refused unless allowed: for networks where nobody
    /// else can be. A [client](Self::from_client) of the caller's own is never looked at.
    #[must_use]
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// The database, where it is not in the URL. Clusters have 0 only.
    #[must_use]
    pub fn database(mut self, database: u32) -> Self {
        self.database = Some(i64::from(database));
        self
    }

    /// Trusts this CA (PEM, one or more certificates) instead of the system's. For `rediss://` only; with Sentinels
    /// it asks for TLS to the primary too.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca = Some(pem.into());
        self
    }

    /// Shows this certificate (PEM, with its chain) and proves it with this key (PEM).
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// What all Redis keys begin with, a colon after it. "ow" unless told; at most 64 letters, digits and `: - _ .`
    ///
    /// Redis allots memory in steps: with up to 2 characters a completed key costs 8 or 16 bytes less than with more.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// How long an attempt to connect may take, with TLS, login and the Sentinels' answers. 2 s by default; after attempts
    /// that took longer, up to four times as long, so that a slow server is reached. It does not depend on how long a
    /// caller waits.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// How long to wait for an answer; then the outcome is unknown. 5 s by default. It must be longer than
    /// [`wait_timeout`](Self::wait_timeout). A connection that answers nothing for 1 s, or a third of this time, is
    /// replaced as soon as another one can be made.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.response_timeout = timeout;
        self
    }

    /// Waits after each claim, completion, failure and burial until this many replicas have it, and reports it as
    /// unknown if fewer do. 0, none, unless told.
    ///
    /// It narrows what a failover can lose, and does not close it: Redis may promote a replica that did not answer. It is
    /// waited for over a second connection, so that renewals and claims do not stand behind it; with
    /// [`from_connection`](Self::from_connection) there is only one, and they do.
    #[must_use]
    pub fn wait_replicas(mut self, count: u32) -> Self {
        self.settings.wait_replicas = count;
        self
    }

    /// How long to wait for the replicas. 1 s unless told.
    #[must_use]
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.settings.wait_timeout = timeout;
        self
    }

    /// How many Redis keys, of whatever owner, [`list`](onceward::StoreAdmin::list) and [`stats`](onceward::StoreAdmin::stats)
    /// may go through before they give up. 10 million unless told.
    #[must_use]
    pub fn scan_limit(mut self, limit: u64) -> Self {
        self.settings.scan_limit = limit;
        self
    }

    /// Checks what can be checked without a server.
    pub(crate) fn validate(&self) -> Result<Keyspace, Error> {
        let has_tls = match &self.servers {
            Servers::Standalone(url) => is_tls(url),
            Servers::Sentinel { sentinels, .. } => {
                alike(sentinels)?;
                true
            }
            Servers::Cluster(nodes) => {
                alike(nodes)?;
                if self.database.is_some_and(|database| database != 0) {
                    return Err(wrong("a cluster has database 0 only; leave the database out"));
                }
                nodes.iter().all(is_tls)
            }
            Servers::Client(_) | Servers::Manager(_) => {
                let has_password = self.password.is_some() || self.password_from.is_some();
                if self.username.is_some() || has_password || self.database.is_some() {
                    return Err(wrong(
                        "the given client brings its own user, password and database; set them there",
                    ));
                }
                false
            }
        };
        if !has_tls && (self.tls.ca.is_some() || self.tls.client.is_some()) {
            return Err(wrong(
                "a certificate is given, but the URL begins with redis://; use rediss:// for TLS",
            ));
        }
        if self.username.is_some() && self.password.is_none() && self.password_from.is_none() {
            return Err(wrong("a user name is given without a password; Redis logs users in with both"));
        }
        crate::plaintext::check(self)?;
        self.settings.validate()
    }
}

impl Settings {
    fn validate(&self) -> Result<Keyspace, Error> {
        for (name, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("wait_timeout", self.wait_timeout),
        ] {
            if timeout.is_zero() || timeout > Duration::from_secs(600) {
                return Err(wrong(format!(
                    "{name} is {timeout:?}; it must be more than 0 and at most 10 min"
                )));
            }
        }
        if self.wait_replicas > 0 && self.wait_timeout >= self.response_timeout {
            return Err(wrong(format!(
                "wait_timeout is {:?}, which leaves no time in response_timeout, {:?}; shorten the one or lengthen the other",
                self.wait_timeout, self.response_timeout
            )));
        }
        Keyspace::new(&self.prefix)
    }
}

pub(crate) fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, "set up the Redis store", what)
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = |urls: &[Url]| urls.iter().map(place).collect::<Vec<_>>().join(",");
        match self {
            Self::Standalone(url) => f.write_str(&place(url)),
            Self::Sentinel { sentinels, primary } => {
                write!(f, "{primary:?} at Sentinels {}", places(sentinels))
            }
            Self::Cluster(nodes) => write!(f, "cluster {}", places(nodes)),
            Self::Client(_) => f.write_str("a given client"),
            Self::Manager(_) => f.write_str("a given connection"),
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("servers", &self.servers)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("password_from", &self.password_from.is_some())
            .field("database", &self.database)
            .field("ca", &self.tls.ca.is_some())
            .field("client_certificate", &self.tls.client.is_some())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        for config in [
            RedisConfig::from_url("redis://app:hunter2@127.0.0.1/1").unwrap(),
            RedisConfig::from_url("redis://127.0.0.1").unwrap().username("app").password("hunter2"),
            RedisConfig::sentinel(["redis://:hunter2@127.0.0.1:26379"], "orders")
                .unwrap()
                .password("hunter2"),
            RedisConfig::cluster(["rediss://:hunter2@127.0.0.1"])
                .unwrap()
                .client_certificate("hunter2", "hunter2"),
        ] {
            assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
        }
        for url in [
            "hunter2",
            "redis://:hunter2",
            "http://:hunter2@host",
            "redis://:hun#hunter2@host",
            "redis://:hun/hunter2@host",
        ] {
            let error = RedisConfig::from_url(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn user_password_and_database_come_from_the_url() {
        let config = RedisConfig::from_url("redis://app:p%40ss%2f@127.0.0.1/7").unwrap();
        assert_eq!(config.username.as_deref(), Some("app"));
        assert_eq!(config.password.as_deref(), Some("p@ss/"));
        assert_eq!(config.database, Some(7));
    }

    #[test]
    fn values_that_disagree_are_refused() {
        let plain = || RedisConfig::from_url("redis://127.0.0.1").unwrap();
        assert!(plain().validate().is_ok());
        assert!(plain().ca("pem").validate().unwrap_err().to_string().contains("use rediss://"));
        assert!(plain().username("app").validate().is_err());
        assert!(plain().response_timeout(Duration::ZERO).validate().is_err());
        assert!(plain().wait_timeout(Duration::from_secs(5)).validate().is_ok(), "nobody waits");
        assert!(plain().wait_timeout(Duration::from_secs(5)).wait_replicas(1).validate().is_err());
        assert!(plain().prefix("a b").validate().is_err());
        assert!(RedisConfig::cluster(["redis://a", "rediss://b"]).unwrap().validate().is_err());
        assert!(RedisConfig::cluster(["redis://a"]).unwrap().database(1).validate().is_err());
        assert!(RedisConfig::cluster([]).is_err());
        assert!(RedisConfig::sentinel(["redis://a"], "").is_err());
        assert!(RedisConfig::cluster(["redis://a?db=1"]).unwrap().validate().is_err());
        assert!(RedisConfig::sentinel(["redis://a/1", "redis://b/2"], "x").unwrap().validate().is_err());
    }

    #[test]
    fn tls_cannot_be_left_unverified() {
        assert!(RedisConfig::from_url("rediss://127.0.0.1/#insecure").is_err());
    }
}
