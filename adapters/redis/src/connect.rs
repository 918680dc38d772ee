//! Makes clients of what [`RedisConfig`] says: [`Connector`].

use onceward::{Error, ErrorKind};
use redis::aio::ConnectionManager;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, TlsCertificates, TlsMode,
};
use url::Url;

use crate::config::{RedisConfig, Servers, Tls, is_tls};
use crate::error::store_error;
use crate::network::Node;

const OPERATION: &str = "set up the Redis client";

/// What connections are made with.
pub(crate) enum Connector {
    Client(Box<Client>),
    /// The client is theirs to name.
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
    /// A connection that sees to itself.
    Managed(ConnectionManager),
}

impl Connector {
    /// For a single server. Checks addresses and certificates; connects nothing yet.
    pub(crate) fn of(config: &RedisConfig) -> Result<Self, Error> {
        if config.uses_tls() {
            provide_crypto();
        }
        match &config.servers {
            Servers::Standalone(url) => Self::to(config, address(url).map_err(refused)?),
            Servers::Sentinel { sentinels, primary } => sentinel(sentinels, primary, config)
                .map(|client| Self::Sentinel(Box::new(tokio::sync::Mutex::new(client))))
                .map_err(refused),
            Servers::Client(client) => Ok(Self::Client(Box::new(client.clone()))),
            Servers::Manager(manager) => Ok(Self::Managed(manager.clone())),
            Servers::Cluster(_) => {
                Err(Error::new(ErrorKind::Internal, OPERATION, "a cluster was taken for a single server"))
            }
        }
    }

    fn to(config: &RedisConfig, address: ConnectionAddr) -> Result<Self, Error> {
        let tls = matches!(address, ConnectionAddr::TcpTls { .. });
        let client = address.into_connection_info().and_then(|info| {
            let info = info.set_redis_settings(login(config));
            match certificates(&config.tls) {
                Some(certificates) if tls => Client::build_with_tls(info, certificates),
                _ => Client::open(info),
            }
        });
        client.map(|client| Self::Client(Box::new(client))).map_err(refused)
    }
}

/// For one node of a cluster.
pub(crate) fn node_client(config: &RedisConfig, node: &Node) -> Result<Connector, Error> {
    let Node { host, port } = node.clone();
    let address = if config.uses_tls() {
        provide_crypto();
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    Connector::to(config, address)
}

/// Nothing was sent yet: whatever it is, it is the configuration.
fn refused(error: RedisError) -> Error {
    match store_error(OPERATION, error) {
        error if error.kind() == ErrorKind::Config => error,
        error => Error::new(
            ErrorKind::Config,
            OPERATION,
            "a certificate or key is not what it should be; all of them are PEM files",
        )
        .with_source(error),
    }
}

impl RedisConfig {
    fn uses_tls(&self) -> bool {
        match &self.servers {
            Servers::Standalone(url) => is_tls(url),
            Servers::Sentinel { sentinels, .. } => sentinels.iter().any(is_tls) || self.tls.ca.is_some(),
            Servers::Cluster(nodes) => nodes.iter().any(is_tls),
            Servers::Client(_) | Servers::Manager(_) => false,
        }
    }
}

/// rustls panics at the first connection if it can choose between two providers. A program that has installed one keeps
/// it; otherwise it is ring, as everywhere in this project.
fn provide_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn address(url: &Url) -> Result<ConnectionAddr, RedisError> {
    let mut bare = url.clone();
    // They are set apart; an address must not bring its own.
    let _ = (bare.set_username(""), bare.set_password(None));
    bare.set_path("");
    Ok(bare.as_str().into_connection_info()?.addr().clone())
}

fn login(config: &RedisConfig) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_lib_name("onceward", onceward::VERSION)
        .set_db(config.database.unwrap_or(0));
    if let Some(username) = &config.username {
        login = login.set_username(username);
    }
    if let Some(password) = &config.password {
        login = login.set_password(password);
    }
    login
}

fn certificates(tls: &Tls) -> Option<TlsCertificates> {
    (tls.ca.is_some() || tls.client.is_some()).then(|| TlsCertificates {
        client_tls: tls.client.as_ref().map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.clone(),
            client_key: key.clone(),
        }),
        root_cert: tls.ca.clone(),
    })
}

fn sentinel(sentinels: &[Url], primary: &str, config: &RedisConfig) -> Result<SentinelClient, RedisError> {
    let addresses = sentinels.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let mut builder = SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?
        .set_client_to_redis_db(config.database.unwrap_or(0));
    if let Some(username) = &config.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &config.password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(username) = &config.sentinel_username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &config.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if config.uses_tls() {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates(&config.tls) {
        if sentinels.iter().any(is_tls) {
            builder = builder.set_client_to_sentinel_certificates(certificates.clone());
        }
        builder = builder.set_client_to_redis_certificates(certificates);
    }
    builder.build()
}
