//! The connection to one server, opened on demand, and replaced when it breaks or stops responding: [`ServerConnection`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use onceward::{Error, ErrorKind};
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Pipeline, RedisError, RedisResult, Value};
use tokio::time::Instant;

use crate::config::RedisOptions;
use crate::error::{classify, ends_connection};
use crate::network::connect::{RawConnection, RedisConnector};
use crate::network::detached::DetachOnDrop;

/// The pause after a failed attempt to connect; calls in the meantime fail with the error of that attempt.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause between attempts to connect to a node of a cluster, whose calls fail at once in the meantime.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A connection is suspected to be dead after a silence of this time, or of a third of the response timeout if that is
/// shorter.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// A node of a cluster may take this many times its typical latency, if that is more than [`SILENCE`].
const LATENCY_FACTOR: u32 = 8;

/// A connection and its sequence number.
type NumberedConnection = (u64, RawConnection);

/// An attempt to connect, shared by all calls that need it.
type ConnectAttempt = Shared<BoxFuture<'static, Result<NumberedConnection, Arc<Error>>>>;

/// A connection that reconnects.
///
/// The `ConnectionManager` of the `redis` crate is not used: after one failed login, or after a timeout that hides a dead
/// connection, it would never reconnect.
///
/// A connection that stays silent is suspected, and a second one is opened. If that succeeds while the first is still
/// silent, it replaces the first: a half-open connection is replaced however long callers wait, and a server that is merely
/// slow keeps its connection, because the second one is as slow.
pub(crate) struct ServerConnection {
    shared: Arc<ConnectionShared>,
}

struct ConnectionShared {
    connector: RedisConnector,
    settings: AsyncConnectionConfig,
    connect_timeout: Duration,
    response_timeout: Duration,
    silence: Duration,
    /// Other servers hold other keys: calls to a server that does not respond fail early, so that they do not delay the rest
    /// of their batches.
    is_cluster_node: bool,
    state: Mutex<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    opened: u64,
    current: Option<NumberedConnection>,
    attempt: Option<ConnectAttempt>,
    failure: Option<ConnectFailure>,
    /// The number of responses of the current connection.
    responses: u64,
    /// The value of `responses` when the connection was suspected: while it is the same, there was no response since.
    suspected_at: Option<u64>,
    /// The smoothed latency of responses.
    latency: Duration,
}

/// The last failed attempt to connect.
struct ConnectFailure {
    when: Instant,
    pause: Duration,
    error: Error,
    /// The number of consecutive attempts that timed out.
    timeouts: u32,
}

impl ConnectionState {
    fn is_suspected(&self) -> bool {
        self.current.is_some() && self.suspected_at == Some(self.responses)
    }

    fn is_current(&self, number: u64) -> bool {
        self.current.as_ref().is_some_and(|(current, _)| *current == number)
    }
}

impl ServerConnection {
    /// Does not connect. The connection may be silent for `silence` before it is suspected; `is_cluster_node` says that
    /// other servers hold other keys.
    pub(crate) fn new(
        connector: RedisConnector,
        options: &RedisOptions,
        silence: Duration,
        is_cluster_node: bool,
    ) -> Self {
        let shared = ConnectionShared {
            connector,
            settings: AsyncConnectionConfig::new().set_response_timeout(Some(options.response_timeout)),
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            silence,
            is_cluster_node,
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Sends commands in one round trip. Each reply may be an error of its own.
    ///
    /// A broken connection is dropped. Nothing is retried: only the caller knows whether that is safe.
    ///
    /// # Errors
    /// The connection cannot be opened, or broke before all replies arrived. Calls to a node of a cluster that does not
    /// respond fail before the response timeout, and later calls fail at once until it can be reached again.
    ///
    /// # Cancel safety
    /// If the future is dropped after the commands were sent, they are executed and their replies discarded; the connection
    /// is still monitored.
    pub(crate) async fn send_all(
        &self,
        operation: &'static str,
        commands: Pipeline,
    ) -> Result<Vec<RedisResult<Value>>, Error> {
        let connection = self.connection(operation).await?;
        let silence = self.shared.silence();
        let exchange = Arc::clone(&self.shared).exchange(operation, connection, commands, silence);
        let exchange = DetachOnDrop::new(exchange);
        if !self.shared.is_cluster_node {
            return exchange.await;
        }
        tokio::time::timeout(silence, exchange).await.unwrap_or_else(|_| Err(not_responding(operation)))
    }

    /// Drops the connection; the next call opens another one.
    pub(crate) fn disconnect(&self) {
        self.shared.state.lock().current = None;
    }

    async fn connection(&self, operation: &'static str) -> Result<NumberedConnection, Error> {
        let shared = &self.shared;
        let attempt = {
            let mut state = shared.state.lock();
            let is_suspected = state.is_suspected();
            if let Some(current) = &state.current
                && !(is_suspected && shared.is_cluster_node)
            {
                return Ok(current.clone());
            }
            let waits = !shared.is_cluster_node || (state.failure.is_none() && !is_suspected);
            let attempt = shared.attempt(&mut state, operation);
            if !waits {
                let failed = state.failure.as_ref().map(|failure| failure.error.clone());
                return Err(failed.unwrap_or_else(|| not_responding(operation)));
            }
            attempt?
        };
        let made = if shared.is_cluster_node {
            tokio::time::timeout(shared.silence(), attempt).await.map_err(|_| not_responding(operation))?
        } else {
            attempt.await
        };
        made.map_err(std::sync::Arc::unwrap_or_clone)
    }
}

impl ConnectionShared {
    /// The time for which the connection may stay silent before it is suspected.
    fn silence(&self) -> Duration {
        let expected = self.state.lock().latency * LATENCY_FACTOR;
        self.silence.max(expected).min(self.response_timeout.max(self.silence))
    }

    /// The attempt in flight, or a new one.
    ///
    /// # Errors
    /// The error of the last attempt, during the pause after it.
    fn attempt(
        self: &Arc<Self>,
        state: &mut ConnectionState,
        operation: &'static str,
    ) -> Result<ConnectAttempt, Error> {
        if let Some(attempt) = &state.attempt {
            return Ok(attempt.clone());
        }
        if let Some(failure) = &state.failure
            && failure.when.elapsed() < failure.pause
        {
            return Err(failure.error.clone());
        }
        let attempt = Arc::clone(self).connect(operation).boxed().shared();
        // It runs in a task, with a time limit of its own: if an impatient caller could cancel it, a slow server would never
        // be reached.
        tokio::spawn(attempt.clone());
        state.attempt = Some(attempt.clone());
        Ok(attempt)
    }

    async fn connect(self: Arc<Self>, operation: &'static str) -> Result<NumberedConnection, Arc<Error>> {
        let timeouts = self.state.lock().failure.as_ref().map_or(0, |failure| failure.timeouts);
        // A slow server gets more time.
        let limit = self.connect_timeout * (1 << timeouts.min(2));
        let settings = self.settings.clone().set_connection_timeout(Some(limit));
        let made =
            tokio::time::timeout(limit, self.connector.connect(operation, &settings, self.response_timeout))
                .await;
        let (made, timeouts) = match made {
            Ok(Ok(connection)) => (Ok(connection), 0),
            Ok(Err(error)) if error.kind() == ErrorKind::Timeout => {
                (Err(no_connection(operation, limit)), timeouts + 1)
            }
            Ok(Err(error)) => (Err(error), 0),
            Err(_) => (Err(no_connection(operation, limit)), timeouts + 1),
        };
        let mut state = self.state.lock();
        state.attempt = None;
        match made {
            // It has responded after all.
            Ok(_) if state.current.is_some() && !state.is_suspected() => {}
            Ok(connection) => {
                if state.current.is_some() {
                    tracing::debug!("unresponsive Redis connection replaced");
                }
                state.opened += 1;
                state.current = Some((state.opened, connection));
                (state.responses, state.suspected_at, state.failure) = (0, None, None);
            }
            Err(error) => {
                let before = state.failure.as_ref().map_or(Duration::ZERO, |failure| failure.pause);
                let longest = if self.is_cluster_node { MAX_RECONNECT_PAUSE } else { RECONNECT_PAUSE };
                let pause = (before * 2).clamp(RECONNECT_PAUSE, longest);
                let returned = error.clone();
                state.failure = Some(ConnectFailure { when: Instant::now(), pause, error, timeouts });
                return Err(Arc::new(returned));
            }
        }
        match &state.current {
            Some(current) => Ok(current.clone()),
            None => Err(Arc::new(not_responding(operation))),
        }
    }

    async fn exchange(
        self: Arc<Self>,
        operation: &'static str,
        (number, mut connection): NumberedConnection,
        commands: Pipeline,
        silence: Duration,
    ) -> Result<Vec<RedisResult<Value>>, Error> {
        let (before, since) = (self.state.lock().responses, Instant::now());
        let replies = {
            let mut request = std::pin::pin!(connection.request(&commands));
            match tokio::time::timeout(silence, &mut request).await {
                Ok(replies) => replies,
                Err(_) => {
                    self.suspect(operation, number, before);
                    request.await
                }
            }
        };
        let replies = replies.map_err(|error| {
            self.drop_if_broken(operation, number, &error);
            classify(operation, error)
        })?;
        self.record_response(number, since.elapsed());
        let replies: Vec<RedisResult<Value>> = replies.into_iter().map(Value::extract_error).collect();
        if let Some(error) = replies.iter().find_map(|reply| reply.as_ref().err()) {
            self.drop_if_broken(operation, number, error);
        }
        Ok(replies)
    }

    fn record_response(&self, number: u64, took: Duration) {
        let mut state = self.state.lock();
        if state.is_current(number) {
            state.responses += 1;
        }
        let latency = state.latency;
        // It rises quickly and falls slowly.
        state.latency = if took > latency { (latency + took) / 2 } else { (latency * 7 + took) / 8 };
    }

    /// Opens a second connection if connection `number` has had no response since `before`.
    fn suspect(self: &Arc<Self>, operation: &'static str, number: u64, before: u64) {
        // A managed connection replaces itself.
        if matches!(self.connector, RedisConnector::Managed(_)) {
            return;
        }
        let mut state = self.state.lock();
        if state.is_current(number) && state.responses == before {
            state.suspected_at = Some(before);
            // During the pause after a failed attempt, a later call starts the next one.
            let _ = self.attempt(&mut state, operation);
        }
    }

    /// Drops connection `number` if `error` means that it is no longer usable.
    fn drop_if_broken(&self, operation: &'static str, number: u64, error: &RedisError) {
        if !ends_connection(error) || matches!(self.connector, RedisConnector::Managed(_)) {
            return;
        }
        let mut state = self.state.lock();
        if state.is_current(number) {
            tracing::debug!(%error, "Redis connection dropped");
            if error.is_timeout() {
                let (when, pause, timeouts) = (Instant::now(), Duration::ZERO, 0);
                state.failure =
                    Some(ConnectFailure { when, pause, error: not_responding(operation), timeouts });
            }
            state.current = None;
        }
    }
}

/// The outcome of what was sent is unknown.
fn not_responding(operation: &'static str) -> Error {
    let what = "the server does not respond; another connection to it is being opened";
    Error::new(ErrorKind::Timeout, operation, what)
}

/// Nothing was sent.
fn no_connection(operation: &'static str, limit: Duration) -> Error {
    let what = format!("no connection could be opened within {limit:?}; check the server and the network");
    Error::new(ErrorKind::Unavailable, operation, what)
}

impl fmt::Debug for ServerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConnection")
            .field("connected", &self.shared.state.lock().current.is_some())
            .finish_non_exhaustive()
    }
}
