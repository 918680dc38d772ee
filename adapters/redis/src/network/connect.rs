//! Makes connections of what [`RedisConfig`] says: [`Connector`].

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use onceward::{Error, ErrorKind};
use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, Pipeline,
    ProtocolVersion, RedisConnectionInfo, RedisError, RedisFuture, TlsCertificates, TlsMode, Value,
};
use url::Url;

use crate::config::{RedisConfig, Servers, Tls};
use crate::endpoint::address::is_tls;
use crate::endpoint::plaintext::{check_address, sends_login};
use crate::error::store_error;
use crate::network::Node;
use crate::network::plain_stream::{self, Driver};

const OPERATION: &str = "set up the Redis client";

/// A silent connection is probed by the kernel after this time, this often, and given up after three probes.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));

/// What was sent and is not acknowledged by the other side's kernel for this long, or for the response timeout if that is
/// longer, ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A connection that many calls share; a clone is another handle to it.
#[derive(Clone)]
pub(crate) enum Connection {
    Direct(MultiplexedConnection, #[allow(dead_code, reason = "it ends with the connection")] Option<Driver>),
    Managed(ConnectionManager),
}

impl Connection {
    /// Sends commands in one go.
    pub(crate) fn request<'a>(&'a mut self, commands: &'a Pipeline) -> RedisFuture<'a, Vec<Value>> {
        let count = commands.len();
        match self {
            Self::Direct(connection, _) => connection.req_packed_commands(commands, 0, count),
            Self::Managed(connection) => connection.req_packed_commands(commands, 0, count),
        }
    }
}

/// What connections are made with.
#[derive(Clone)]
pub(crate) enum Connector {
    /// One address. Each connection has the password of its own time.
    Server(Box<RedisConfig>, ConnectionAddr),
    Sentinel(Box<RedisConfig>),
    /// A client of the caller's own.
    Client(Box<Client>),
    /// A connection that replaces itself.
    Managed(ConnectionManager),
}

impl Connector {
    /// For a single server. Checks addresses and certificates; connects nothing yet.
    pub(crate) fn of(config: &RedisConfig) -> Result<Self, Error> {
        match &config.servers {
            Servers::Standalone(url) => Self::to(config, address(url).map_err(refused)?),
            Servers::Sentinel { sentinels, primary } => {
                prepare(config);
                sentinel(sentinels, primary, config, config.password.as_deref()).map_err(refused)?;
                Ok(Self::Sentinel(Box::new(config.clone())))
            }
            Servers::Client(client) => Ok(Self::Client(Box::new(client.clone()))),
            Servers::Manager(manager) => Ok(Self::Managed(manager.clone())),
            Servers::Cluster(_) => {
                Err(Error::new(ErrorKind::Internal, OPERATION, "a cluster was taken for a single server"))
            }
        }
    }

    /// For one node of a cluster.
    pub(crate) fn to_node(config: &RedisConfig, node: &Node) -> Result<Self, Error> {
        let Node { host, port } = node.clone();
        let address = if config.uses_tls() {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Self::to(config, address)
    }

    fn to(config: &RedisConfig, address: ConnectionAddr) -> Result<Self, Error> {
        prepare(config);
        client(config, &address, config.password.as_deref()).map_err(refused)?;
        Ok(Self::Server(Box::new(config.clone()), address))
    }

    /// Makes a connection and logs in.
    pub(crate) async fn connect(
        &self,
        operation: &'static str,
        settings: &AsyncConnectionConfig,
    ) -> Result<Connection, Error> {
        let wrong = |error| store_error(operation, error);
        let client = match self {
            Self::Server(config, address) => {
                check_address(config, address, operation)?;
                let password = config.current_password().await?;
                client(config, address, password.as_deref()).map_err(wrong)?
            }
            Self::Sentinel(config) => {
                let password = config.current_password().await?;
                primary(operation, config, password.as_deref()).await?
            }
            Self::Client(client) => client.as_ref().clone(),
            Self::Managed(manager) => return Ok(Connection::Managed(manager.clone())),
        };
        if let ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr() {
            let made = plain_stream::connect(&client, (host, *port), settings).await.map_err(wrong)?;
            return Ok(Connection::Direct(made.0, Some(made.1)));
        }
        let made = client.get_multiplexed_async_connection_with_config(settings).await.map_err(wrong)?;
        Ok(Connection::Direct(made, None))
    }
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

    /// The password for a connection that is made now.
    async fn current_password(&self) -> Result<Option<String>, Error> {
        let Some(provider) = self.password_from.clone() else { return Ok(self.password.clone()) };
        // It may read a file, which blocks its thread.
        match tokio::task::spawn_blocking(move || provider()).await {
            Ok(password) => password.map(Some),
            Err(error) => {
                let what = "the password provider did not return";
                Err(Error::new(ErrorKind::Internal, "log in to Redis", what).with_source(error))
            }
        }
    }
}

/// rustls panics at the first connection if it can choose between two providers. A program that has installed one keeps
/// it; otherwise it is ring, as everywhere in this project.
fn prepare(config: &RedisConfig) {
    if config.uses_tls() && rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn address(url: &Url) -> Result<ConnectionAddr, RedisError> {
    let mut bare = url.clone();
    // They are set apart; an address must not bring its own.
    let _ = (bare.set_username(""), bare.set_password(None));
    bare.set_path("");
    bare.set_query(None);
    Ok(bare.as_str().into_connection_info()?.addr().clone())
}

/// A client for one address.
fn client(
    config: &RedisConfig,
    address: &ConnectionAddr,
    password: Option<&str>,
) -> Result<Client, RedisError> {
    let has_tls = matches!(address, ConnectionAddr::TcpTls { .. });
    let info = address.clone().into_connection_info()?;
    let info = info.set_redis_settings(login(config, password)).set_tcp_settings(tcp(config));
    match certificates(&config.tls) {
        Some(certificates) if has_tls => Client::build_with_tls(info, certificates),
        _ => Client::open(info),
    }
}

fn tcp(config: &RedisConfig) -> TcpSettings {
    let (idle, interval) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let (settings, keepalive) = (
        settings.set_user_timeout(UNACKNOWLEDGED.max(config.settings.response_timeout)),
        keepalive.with_retries(3),
    );
    let _ = config;
    settings.set_keepalive(keepalive)
}

fn login(config: &RedisConfig, password: Option<&str>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_lib_name("onceward", onceward::VERSION)
        .set_db(config.database.unwrap_or(0));
    if let Some(username) = &config.username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
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

/// Asks all Sentinels at once for the primary; the first answer counts, so that those out of reach cost no time.
async fn primary(
    operation: &'static str,
    config: &RedisConfig,
    password: Option<&str>,
) -> Result<Client, Error> {
    let Servers::Sentinel { sentinels, primary } = &config.servers else {
        return Err(Error::new(ErrorKind::Internal, operation, "there are no Sentinels to ask"));
    };
    let mut asked: FuturesUnordered<_> =
        sentinels.iter().map(|url| ask(operation, url, primary, config, password)).collect();
    let mut worst: Option<Error> = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(client) => return Ok(client),
            // What waiting does not cure says more than a Sentinel out of reach.
            Err(error) => {
                let says_more = |known: &Error| known.is_retryable() && !error.is_retryable();
                if worst.as_ref().is_none_or(says_more) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| Error::new(ErrorKind::Config, operation, "no Sentinel is given")))
}

/// Asks one Sentinel. Its client logs in to the primary to see what it is, so that the primary's address is looked at before.
async fn ask(
    operation: &'static str,
    url: &Url,
    primary: &str,
    config: &RedisConfig,
    password: Option<&str>,
) -> Result<Client, Error> {
    let wrong = |error| store_error(operation, error);
    let mut client = sentinel(std::slice::from_ref(url), primary, config, password).map_err(wrong)?;
    if sends_login(config) && !config.uses_tls() {
        let asked = client.async_get_sentinel_client().await.map_err(wrong)?;
        let mut connection = asked.get_multiplexed_async_connection().await.map_err(wrong)?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
        let answer: Option<(String, u16)> = question.query_async(&mut connection).await.map_err(wrong)?;
        if let Some((host, port)) = answer {
            check_address(config, &ConnectionAddr::Tcp(host, port), operation)?;
        }
    }
    let client = client.async_get_client().await.map_err(wrong)?;
    check_address(config, client.get_connection_info().addr(), operation)?;
    Ok(client)
}

fn sentinel(
    sentinels: &[Url],
    primary: &str,
    config: &RedisConfig,
    password: Option<&str>,
) -> Result<SentinelClient, RedisError> {
    let addresses = sentinels.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let mut builder = SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?
        .set_client_to_redis_tcp_settings(tcp(config))
        .set_client_to_redis_db(config.database.unwrap_or(0));
    if let Some(username) = &config.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = password {
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
