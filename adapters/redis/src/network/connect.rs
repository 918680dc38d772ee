//! Opens connections to servers: [`RedisConnector`].

use std::sync::Arc;
use std::time::Duration;

use onceward::{Error, ErrorKind};
use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, Pipeline, RedisError, RedisFuture, Value};
use url::Url;

use crate::endpoint::plaintext::check_address;
use crate::endpoint::target::RedisTarget;
use crate::error::classify;
use crate::network::client::{address_of, client};
use crate::network::node::ClusterNode;
use crate::network::plain_stream::{self, ConnectionDriver};
use crate::network::sentinel::{find_primary, sentinel_client};

const OPERATION: &str = "set up the Redis client";

/// A connection that many calls share; a clone is another handle to it.
#[derive(Clone)]
pub(crate) enum RawConnection {
    Direct(
        MultiplexedConnection,
        #[allow(dead_code, reason = "dropped with the connection")] Option<ConnectionDriver>,
    ),
    Managed(ConnectionManager),
}

impl RawConnection {
    /// Sends commands in one round trip.
    pub(crate) fn request<'a>(&'a mut self, commands: &'a Pipeline) -> RedisFuture<'a, Vec<Value>> {
        let count = commands.len();
        match self {
            Self::Direct(connection, _) => connection.req_packed_commands(commands, 0, count),
            Self::Managed(connection) => connection.req_packed_commands(commands, 0, count),
        }
    }
}

/// The way to one server.
#[derive(Clone)]
pub(crate) enum RedisConnector {
    /// One address. The password is read for each connection.
    Address(Arc<RedisTarget>, ConnectionAddr),
    /// The primary that Sentinels name.
    Sentinel { target: Arc<RedisTarget>, sentinels: Vec<Url>, primary: String },
    /// A client that the caller has built.
    Client(Box<Client>),
    /// A connection that the caller has opened, and that reconnects by itself.
    Managed(ConnectionManager),
}

impl RedisConnector {
    /// The server at `url`. Does not connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the address or a certificate is invalid.
    pub(crate) fn to_url(target: &Arc<RedisTarget>, url: &Url) -> Result<Self, Error> {
        Self::to_address(target, address_of(url).map_err(invalid)?)
    }

    /// The primary that `sentinels` call `primary`. Does not connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if an address or certificate is invalid.
    pub(crate) fn to_primary(
        target: &Arc<RedisTarget>,
        sentinels: &[Url],
        primary: &str,
    ) -> Result<Self, Error> {
        install_crypto_provider(target);
        sentinel_client(sentinels, primary, target, target.password.as_deref(), Duration::ZERO)
            .map_err(invalid)?;
        let (sentinels, primary) = (sentinels.to_vec(), primary.to_owned());
        Ok(Self::Sentinel { target: Arc::clone(target), sentinels, primary })
    }

    /// A node of a cluster. Does not connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the address or a certificate is invalid.
    pub(crate) fn to_node(target: &Arc<RedisTarget>, node: &ClusterNode) -> Result<Self, Error> {
        let ClusterNode { host, port } = node.clone();
        let address = if target.uses_tls() {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Self::to_address(target, address)
    }

    fn to_address(target: &Arc<RedisTarget>, address: ConnectionAddr) -> Result<Self, Error> {
        install_crypto_provider(target);
        client(target, &address, target.password.as_deref(), Duration::ZERO).map_err(invalid)?;
        Ok(Self::Address(Arc::clone(target), address))
    }

    /// Opens a connection and logs in.
    ///
    /// # Errors
    /// The server cannot be reached, rejects the login, or would receive the login without TLS.
    pub(crate) async fn connect(
        &self,
        operation: &'static str,
        settings: &AsyncConnectionConfig,
        response_timeout: Duration,
    ) -> Result<RawConnection, Error> {
        let failed = |error| classify(operation, error);
        let client = match self {
            Self::Address(target, address) => {
                if target.protects_login() {
                    check_address(address, operation)?;
                }
                let password = target.current_password().await?;
                client(target, address, password.as_deref(), response_timeout).map_err(failed)?
            }
            Self::Sentinel { target, sentinels, primary } => {
                let password = target.current_password().await?;
                let clients = sentinels.iter().map(|url| {
                    let url = std::slice::from_ref(url);
                    sentinel_client(url, primary, target, password.as_deref(), response_timeout)
                });
                find_primary(operation, target, primary, clients).await?
            }
            Self::Client(client) => client.as_ref().clone(),
            Self::Managed(manager) => return Ok(RawConnection::Managed(manager.clone())),
        };
        if let ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr() {
            let (connection, driver) =
                plain_stream::connect(&client, (host, *port), settings).await.map_err(failed)?;
            return Ok(RawConnection::Direct(connection, Some(driver)));
        }
        let connection =
            client.get_multiplexed_async_connection_with_config(settings).await.map_err(failed)?;
        Ok(RawConnection::Direct(connection, None))
    }
}

/// An error before anything was sent: the configuration is invalid.
fn invalid(error: RedisError) -> Error {
    match classify(OPERATION, error) {
        error if error.kind() == ErrorKind::Config => error,
        error => Error::new(
            ErrorKind::Config,
            OPERATION,
            "a certificate or key is invalid; all of them must be PEM files",
        )
        .with_source(error),
    }
}

/// Installs ring as the crypto provider, unless the program has installed one: with two to choose from, rustls panics at
/// the first connection.
fn install_crypto_provider(target: &RedisTarget) {
    if target.uses_tls() && rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have installed one meanwhile, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
