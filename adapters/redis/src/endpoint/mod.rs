//! Servers, login and TLS of a Redis store: [`RedisEndpoint`].

pub(crate) mod address;
pub(crate) mod plaintext;
pub(crate) mod target;

use std::fmt;
use std::sync::Arc;

use onceward::Error;

use crate::endpoint::address::redacted;

/// Returns the password for a connection that is about to be opened.
///
/// It runs on a thread that may block, and may read a file. Its error becomes the error of the call that needed the
/// connection.
pub type PasswordProvider = Arc<dyn Fn() -> Result<String, Error> + Send + Sync>;

/// Where Redis or Valkey is, and how to log in.
///
/// `Debug` shows neither passwords nor private keys.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisEndpoint {
    /// The servers.
    pub servers: RedisServers,
    /// The ACL user, if it is not in the URL. Takes precedence over the URL's.
    pub username: Option<String>,
    /// The password, if it is not in the URL. Takes precedence over the URL's.
    pub password: Option<String>,
    /// Returns the password before each new connection; takes precedence over [`password`](Self::password). For
    /// passwords that change while the program runs, and for tokens.
    pub password_from: Option<PasswordProvider>,
    /// The database number, if it is not in the URL; default 0. A cluster has database 0 only.
    pub database: Option<u32>,
    /// The CA to trust instead of the system's: PEM, one or more certificates. Requires `rediss://`; with Sentinels it
    /// also turns on TLS to the primary.
    pub ca: Option<Vec<u8>>,
    /// The client certificate for mutual TLS.
    pub client_certificate: Option<ClientCertificate>,
    /// Allows user and password to be sent without TLS to another host, where anybody on the path can read them: to a
    /// server, to the primary that Sentinels name, and to the nodes that a cluster names. Default false: such a
    /// connection is refused. For isolated networks.
    pub allow_plaintext: bool,
}

/// The servers of a store.
#[derive(Clone)]
#[non_exhaustive]
pub enum RedisServers {
    /// One server at a URL.
    Standalone(String),
    /// The primary that Sentinels know by name. It is looked up again after each lost connection and after a failover.
    Sentinel {
        /// The URLs of the Sentinels, which must agree in TLS, user and password. Their user and password are for the
        /// Sentinels; those of [`RedisEndpoint`] are for the primary. A database in the URLs is that of the primary.
        sentinels: Vec<String>,
        /// The name of the primary, from the Sentinels' `sentinel monitor`.
        primary: String,
    },
    /// The URLs of some nodes of a cluster, which must agree in TLS, user and password. The others are discovered.
    Cluster(Vec<String>),
}

/// A TLS client certificate.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// The certificate with its chain, PEM.
    pub certificate: Vec<u8>,
    /// Its private key, PEM.
    pub key: Vec<u8>,
}

impl ClientCertificate {
    /// A certificate with its chain and its private key, both PEM.
    pub fn new(certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        Self { certificate: certificate.into(), key: key.into() }
    }
}

impl RedisEndpoint {
    /// `servers`, with user, password and database from their URLs, and without TLS files.
    pub fn new(servers: RedisServers) -> Self {
        Self {
            servers,
            username: None,
            password: None,
            password_from: None,
            database: None,
            ca: None,
            client_certificate: None,
            allow_plaintext: false,
        }
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(***)")
    }
}

impl fmt::Debug for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |urls: &[String]| urls.iter().map(|url| redacted(url)).collect::<Vec<_>>().join(",");
        match self {
            Self::Standalone(url) => f.write_str(&redacted(url)),
            Self::Sentinel { sentinels, primary } => write!(f, "{primary:?} at Sentinels {}", all(sentinels)),
            Self::Cluster(nodes) => write!(f, "cluster {}", all(nodes)),
        }
    }
}

impl fmt::Debug for RedisEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisEndpoint")
            .field("servers", &self.servers)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("password_from", &self.password_from.is_some())
            .field("database", &self.database)
            .field("ca", &self.ca.is_some())
            .field("client_certificate", &self.client_certificate)
            .field("allow_plaintext", &self.allow_plaintext)
            .finish()
    }
}
