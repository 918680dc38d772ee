//! The connection, made when it is needed and made anew when it is lost: [`Link`].

use std::fmt;
use std::future::Future;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use crate::config::RedisConfig;
use crate::connect::Connector;
use crate::error::{ends_connection, store_error};

/// After a failed attempt to connect, the next one waits this long; calls meanwhile fail as it did.
const PAUSE: Duration = Duration::from_millis(200);

/// A connection that many calls share; a clone is another handle to it.
#[derive(Clone)]
pub(crate) enum Connection {
    Direct(MultiplexedConnection),
    Manager(ConnectionManager),
    Cluster(ClusterConnection),
}

/// The connection in use, and the way to the next one.
///
/// The client's own `ConnectionManager` is not used for this: one failed login or a timeout that hides a dead
/// connection would keep it as it is for ever.
pub(crate) struct Link {
    connector: Connector,
    settings: AsyncConnectionConfig,
    connect_timeout: Duration,
    current: RwLock<Option<(u64, Connection)>>,
    connecting: Mutex<Connecting>,
}

#[derive(Default)]
struct Connecting {
    made: u64,
    failed: Option<(Instant, Error)>,
}

impl Link {
    /// Connects nothing yet.
    pub(crate) fn new(config: &RedisConfig) -> Result<Self, Error> {
        let settings = &config.settings;
        Ok(Self {
            connector: Connector::of(&config.servers, config)?,
            settings: AsyncConnectionConfig::new()
                .set_connection_timeout(Some(settings.connect_timeout))
                .set_response_timeout(Some(settings.response_timeout)),
            connect_timeout: settings.connect_timeout,
            current: RwLock::new(None),
            connecting: Mutex::new(Connecting::default()),
        })
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.connector, Connector::Cluster(_))
    }

    pub(crate) fn has_sentinels(&self) -> bool {
        matches!(self.connector, Connector::Sentinel(_))
    }

    /// Runs `talk` with the connection, and drops that if it turns out to be broken. It is not tried again: the caller
    /// knows whether the outcome is unknown.
    pub(crate) async fn with_connection<T, F>(
        &self,
        operation: &'static str,
        talk: impl FnOnce(Connection) -> F,
    ) -> Result<RedisResult<T>, Error>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let (number, connection) = self.connection(operation).await?;
        let outcome = talk(connection).await;
        if let Err(error) = &outcome {
            self.consider(number, error);
        }
        Ok(outcome)
    }

    fn existing(&self) -> Option<(u64, Connection)> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn connection(&self, operation: &'static str) -> Result<(u64, Connection), Error> {
        if let Some(existing) = self.existing() {
            return Ok(existing);
        }
        let mut connecting = self.connecting.lock().await;
        if let Some(existing) = self.existing() {
            return Ok(existing);
        }
        if let Some((when, error)) = &connecting.failed
            && when.elapsed() < PAUSE
        {
            return Err(error.replicate());
        }
        match self.connect(operation).await {
            Ok(connection) => {
                connecting.made += 1;
                connecting.failed = None;
                let made = (connecting.made, connection);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
                Ok(made)
            }
            Err(error) => {
                connecting.failed = Some((Instant::now(), error.replicate()));
                Err(error)
            }
        }
    }

    async fn connect(&self, operation: &'static str) -> Result<Connection, Error> {
        let made = async {
            match &self.connector {
                Connector::Standalone(client) => Ok(Connection::Direct(
                    client.get_multiplexed_async_connection_with_config(&self.settings).await?,
                )),
                Connector::Sentinel(sentinels) => {
                    let client = sentinels.lock().await.async_get_client().await?;
                    Ok(Connection::Direct(
                        client.get_multiplexed_async_connection_with_config(&self.settings).await?,
                    ))
                }
                Connector::Cluster(client) => Ok(Connection::Cluster(client.get_async_connection().await?)),
                Connector::Managed(manager) => Ok(Connection::Manager(manager.clone())),
            }
        };
        match tokio::time::timeout(self.connect_timeout, made).await {
            Ok(made) => made.map_err(|error| store_error(operation, error)),
            // Nothing was sent that could have been applied.
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                operation,
                format!("no connection could be made within {:?}", self.connect_timeout),
            )),
        }
    }

    /// Drops connection `number` if `error` says that it is of no more use.
    fn consider(&self, number: u64, error: &RedisError) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let Some((of, connection)) = current.as_ref() else { return };
        let is_over = match connection {
            Connection::Direct(_) => ends_connection(error),
            // They reconnect by themselves; these are what they cannot come back from.
            Connection::Cluster(_) => matches!(
                error.kind(),
                redis::ErrorKind::ClusterConnectionNotFound | redis::ErrorKind::AuthenticationFailed
            ),
            Connection::Manager(_) => false,
        };
        if is_over && *of == number {
            tracing::debug!(error = %error, "the connection to Redis is given up");
            *current = None;
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("connected", &self.existing().is_some()).finish_non_exhaustive()
    }
}

fn to_primary_of(key: &[u8]) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master))
}

impl Connection {
    /// Sends a command to the server that holds `key`.
    pub(crate) async fn send(&mut self, command: Cmd, key: &[u8]) -> RedisResult<Value> {
        match self {
            Self::Direct(connection) => connection.req_packed_command(&command).await,
            Self::Manager(connection) => connection.req_packed_command(&command).await,
            Self::Cluster(connection) => {
                connection.route_command(command, RoutingInfo::SingleNode(to_primary_of(key))).await
            }
        }
        .and_then(Value::extract_error)
    }

    /// Sends commands in one go to the server that holds `key`. Each reply may be an error of its own.
    pub(crate) async fn send_all(&mut self, commands: Pipeline, key: &[u8]) -> RedisResult<Vec<Value>> {
        let count = commands.len();
        match self {
            Self::Direct(connection) => connection.req_packed_commands(&commands, 0, count).await,
            Self::Manager(connection) => connection.req_packed_commands(&commands, 0, count).await,
            Self::Cluster(connection) => {
                connection.route_pipeline(commands, 0, count, to_primary_of(key)).await
            }
        }
    }

    /// Sends a command to one node of a cluster, or to the only server.
    pub(crate) async fn send_to(&mut self, command: Cmd, node: Option<&Node>) -> RedisResult<Value> {
        match (self, node) {
            (Self::Direct(connection), _) => connection.req_packed_command(&command).await,
            (Self::Manager(connection), _) => connection.req_packed_command(&command).await,
            (Self::Cluster(connection), Some(Node { host, port })) => {
                let to = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                connection.route_command(command, RoutingInfo::SingleNode(to)).await
            }
            (Self::Cluster(connection), None) => {
                let to = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
                connection.route_command(command, to).await
            }
        }
        .and_then(Value::extract_error)
    }
}

/// A primary of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) host: String,
    pub(crate) port: u16,
}
