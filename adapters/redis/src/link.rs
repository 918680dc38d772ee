//! The connection to one server, made when it is needed and made anew when it is lost: [`Link`].

use std::fmt;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use crate::config::Settings;
use crate::connect::Connector;
use crate::error::{ends_connection, store_error};

/// After a failed attempt to connect, the next one waits this long; calls meanwhile fail as it did.
const PAUSE: Duration = Duration::from_millis(200);

/// A connection that many calls share; a clone is another handle to it.
#[derive(Clone)]
enum Connection {
    Direct(MultiplexedConnection),
    Managed(ConnectionManager),
}

/// The connection in use, and the way to the next one.
///
/// The client's own `ConnectionManager` is not used for this: one failed login, or a timeout that hides a dead
/// connection, would keep it as it is for ever.
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
    pub(crate) fn new(connector: Connector, settings: &Settings) -> Self {
        Self {
            connector,
            settings: AsyncConnectionConfig::new()
                .set_connection_timeout(Some(settings.connect_timeout))
                .set_response_timeout(Some(settings.response_timeout)),
            connect_timeout: settings.connect_timeout,
            current: RwLock::new(None),
            connecting: Mutex::new(Connecting::default()),
        }
    }

    /// Sends commands in one go. Each reply may be an error of its own.
    ///
    /// A connection that turns out to be broken is dropped; nothing is sent again, because only the caller knows
    /// whether it may be.
    ///
    /// # Errors
    /// The connection cannot be made, or broke before all replies were there.
    ///
    /// # Cancel safety
    /// Dropped after the commands were handed over, they are carried out; their replies go nowhere.
    pub(crate) async fn send_all(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> Result<Vec<RedisResult<Value>>, Error> {
        let (number, mut connection) = self.connection(operation).await?;
        let count = commands.len();
        let replies = match &mut connection {
            Connection::Direct(connection) => connection.req_packed_commands(commands, 0, count).await,
            Connection::Managed(connection) => connection.req_packed_commands(commands, 0, count).await,
        };
        let replies = replies.map_err(|error| {
            self.consider(number, &error);
            store_error(operation, error)
        })?;
        let replies: Vec<RedisResult<Value>> = replies.into_iter().map(Value::extract_error).collect();
        if let Some(error) = replies.iter().find_map(|reply| reply.as_ref().err()) {
            self.consider(number, error);
        }
        Ok(replies)
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
            let client = match &self.connector {
                Connector::Client(client) => client.as_ref().clone(),
                Connector::Sentinel(sentinels) => sentinels.lock().await.async_get_client().await?,
                Connector::Managed(manager) => return Ok(Connection::Managed(manager.clone())),
            };
            client.get_multiplexed_async_connection_with_config(&self.settings).await.map(Connection::Direct)
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
        // A managed connection sees to itself.
        if !ends_connection(error) || matches!(self.connector, Connector::Managed(_)) {
            return;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(of, _)| *of == number) {
            tracing::debug!(%error, "the connection to Redis is given up");
            *current = None;
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("connected", &self.existing().is_some()).finish_non_exhaustive()
    }
}
