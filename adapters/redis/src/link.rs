//! The connection to one server: made when it is needed, replaced when it is lost or no longer answers: [`Link`].

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use onceward::{Error, ErrorKind};
use redis::{AsyncConnectionConfig, Pipeline, RedisError, RedisResult, Value};
use tokio::time::Instant;

use crate::completing::Completing;
use crate::config::Settings;
use crate::confirm::Confirmer;
use crate::connect::{Connection, Connector};
use crate::error::{ends_connection, store_error};

/// After a failed attempt to connect, the next one waits this long; calls meanwhile fail as it did.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest pause between attempts to reach a node of a cluster, whose calls fail at once meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that has not answered for this long, or for a third of the response timeout, is suspected to be dead.
const SILENCE: Duration = Duration::from_secs(1);

/// A node of a cluster is waited for this many times as long as it usually takes, if that is more than [`SILENCE`].
const USUAL_TIMES: u32 = 8;

/// A connection and its number among those of a link.
type Numbered = (u64, Connection);

/// An attempt to connect, which all calls that need it share.
type Attempt = Shared<BoxFuture<'static, Result<Numbered, Arc<Error>>>>;

/// The connection in use, and the way to the next one.
///
/// The client's own `ConnectionManager` is not used for this: one failed login, or a timeout that hides a dead
/// connection, would keep it as it is for ever.
///
/// A connection that stays silent is suspected, and another one is opened beside it. If that succeeds while the first is
/// still silent, it takes its place: so a half-open connection is replaced however long callers wait, and a server that is
/// merely slow keeps its connection, because it is as slow with the new one.
pub(crate) struct Link {
    shared: Arc<Inner>,
    /// Waits for replicas, over a connection of its own.
    confirmer: Option<Confirmer>,
}

struct Inner {
    connector: Connector,
    settings: AsyncConnectionConfig,
    connect_timeout: Duration,
    response_timeout: Duration,
    silence: Duration,
    /// Other servers hold other keys: calls to a server that does not answer fail early, so as not to hold up the rest of
    /// their batches.
    is_one_of_many: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    made: u64,
    current: Option<Numbered>,
    attempt: Option<Attempt>,
    failure: Option<Failure>,
    /// How often the current connection has answered.
    answers: u64,
    /// What `answers` was when the connection was suspected: as long as it is the same, nothing was answered since.
    suspected_at: Option<u64>,
    /// How long answers take, smoothed.
    usual: Duration,
}

/// Why there is no connection.
struct Failure {
    when: Instant,
    pause: Duration,
    error: Error,
    /// How many attempts in a row got no answer in time.
    timeouts: u32,
}

impl State {
    fn is_suspected(&self) -> bool {
        self.current.is_some() && self.suspected_at == Some(self.answers)
    }

    fn is_current(&self, number: u64) -> bool {
        self.current.as_ref().is_some_and(|(of, _)| *of == number)
    }
}

impl Link {
    /// Connects nothing yet.
    pub(crate) fn new(connector: Connector, settings: &Settings, is_one_of_many: bool) -> Self {
        let confirmer = (settings.wait_replicas > 0).then(|| {
            // `WAIT` keeps its connection silent for as long as it waits.
            let silence = settings.wait_timeout + SILENCE;
            let link = Self::bare(connector.clone(), settings, silence, false);
            Confirmer::new(link, settings, is_one_of_many)
        });
        let silence = SILENCE.min(settings.response_timeout / 3);
        Self { confirmer, ..Self::bare(connector, settings, silence, is_one_of_many) }
    }

    fn bare(connector: Connector, settings: &Settings, silence: Duration, is_one_of_many: bool) -> Self {
        let shared = Inner {
            connector,
            settings: AsyncConnectionConfig::new().set_response_timeout(Some(settings.response_timeout)),
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.response_timeout,
            silence,
            is_one_of_many,
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared), confirmer: None }
    }

    /// The connection that waits for replicas, if any are configured.
    pub(crate) fn confirmer(&self) -> Option<&Confirmer> {
        self.confirmer.as_ref()
    }

    /// Sends commands in one go. Each reply may be an error of its own.
    ///
    /// A connection that turns out to be broken is dropped; nothing is sent again, because only the caller knows
    /// whether it may be.
    ///
    /// # Errors
    /// The connection cannot be made, or broke before all replies were there. A node of a cluster that does not answer is
    /// not waited for until the response timeout, and later calls fail at once until it can be reached again.
    ///
    /// # Cancel safety
    /// Dropped after the commands were handed over, they are carried out; their replies go nowhere, but the connection
    /// is watched on.
    pub(crate) async fn send_all(
        &self,
        operation: &'static str,
        commands: Pipeline,
    ) -> Result<Vec<RedisResult<Value>>, Error> {
        let connection = self.connection(operation).await?;
        let silence = self.shared.silence();
        let exchange = Arc::clone(&self.shared).exchange(operation, connection, commands, silence);
        let exchange = Completing::new(exchange);
        if !self.shared.is_one_of_many {
            return exchange.await;
        }
        tokio::time::timeout(silence, exchange).await.unwrap_or_else(|_| Err(silent(operation)))
    }

    /// Drops the connection; the next call makes another one.
    pub(crate) fn drop_connection(&self) {
        self.shared.lock().current = None;
    }

    async fn connection(&self, operation: &'static str) -> Result<Numbered, Error> {
        let shared = &self.shared;
        let attempt = {
            let mut state = shared.lock();
            let is_suspected = state.is_suspected();
            if let Some(current) = &state.current
                && !(is_suspected && shared.is_one_of_many)
            {
                return Ok(current.clone());
            }
            let waits = !shared.is_one_of_many || (state.failure.is_none() && !is_suspected);
            let attempt = shared.attempt(&mut state, operation);
            if !waits {
                let failed = state.failure.as_ref().map(|failure| failure.error.clone());
                return Err(failed.unwrap_or_else(|| silent(operation)));
            }
            attempt?
        };
        let made = if shared.is_one_of_many {
            tokio::time::timeout(shared.silence(), attempt).await.map_err(|_| silent(operation))?
        } else {
            attempt.await
        };
        made.map_err(Arc::unwrap_or_clone)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the connection may stay silent before it is suspected.
    fn silence(&self) -> Duration {
        let usual = self.lock().usual * USUAL_TIMES;
        self.silence.max(usual).min(self.response_timeout.max(self.silence))
    }

    /// The attempt that is under way, or a new one, unless the last one failed just now.
    fn attempt(self: &Arc<Self>, state: &mut State, operation: &'static str) -> Result<Attempt, Error> {
        if let Some(attempt) = &state.attempt {
            return Ok(attempt.clone());
        }
        if let Some(failure) = &state.failure
            && failure.when.elapsed() < failure.pause
        {
            return Err(failure.error.clone());
        }
        let attempt = Arc::clone(self).connect(operation).boxed().shared();
        // It has a time limit of its own: a caller that gives up early must not end it, or a slow server would never be
        // reached.
        tokio::spawn(attempt.clone());
        state.attempt = Some(attempt.clone());
        Ok(attempt)
    }

    async fn connect(self: Arc<Self>, operation: &'static str) -> Result<Numbered, Arc<Error>> {
        let timeouts = self.lock().failure.as_ref().map_or(0, |failure| failure.timeouts);
        // A slow server is given more time.
        let limit = self.connect_timeout * (1 << timeouts.min(2));
        let settings = self.settings.clone().set_connection_timeout(Some(limit));
        let made = tokio::time::timeout(limit, self.connector.connect(operation, &settings)).await;
        let (made, timeouts) = match made {
            Ok(Ok(connection)) => (Ok(connection), 0),
            Ok(Err(error)) if error.kind() == ErrorKind::Timeout => {
                (Err(no_connection(operation, limit)), timeouts + 1)
            }
            Ok(Err(error)) => (Err(error), 0),
            Err(_) => (Err(no_connection(operation, limit)), timeouts + 1),
        };
        let mut state = self.lock();
        state.attempt = None;
        match made {
            // It has answered after all.
            Ok(_) if state.current.is_some() && !state.is_suspected() => {}
            Ok(connection) => {
                if state.current.is_some() {
                    tracing::debug!("a connection to Redis that no longer answers is replaced");
                }
                state.made += 1;
                state.current = Some((state.made, connection));
                (state.answers, state.suspected_at, state.failure) = (0, None, None);
            }
            Err(error) => {
                let before = state.failure.as_ref().map_or(Duration::ZERO, |failure| failure.pause);
                let longest = if self.is_one_of_many { LONGEST_PAUSE } else { PAUSE };
                let pause = (before * 2).clamp(PAUSE, longest);
                let told = error.clone();
                state.failure = Some(Failure { when: Instant::now(), pause, error, timeouts });
                return Err(Arc::new(told));
            }
        }
        match &state.current {
            Some(current) => Ok(current.clone()),
            None => Err(Arc::new(silent(operation))),
        }
    }

    async fn exchange(
        self: Arc<Self>,
        operation: &'static str,
        (number, mut connection): Numbered,
        commands: Pipeline,
        silence: Duration,
    ) -> Result<Vec<RedisResult<Value>>, Error> {
        let (before, since) = (self.lock().answers, Instant::now());
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
            self.consider(operation, number, &error);
            store_error(operation, error)
        })?;
        self.answered(number, since.elapsed());
        let replies: Vec<RedisResult<Value>> = replies.into_iter().map(Value::extract_error).collect();
        if let Some(error) = replies.iter().find_map(|reply| reply.as_ref().err()) {
            self.consider(operation, number, error);
        }
        Ok(replies)
    }

    fn answered(&self, number: u64, took: Duration) {
        let mut state = self.lock();
        if state.is_current(number) {
            state.answers += 1;
        }
        let usual = state.usual;
        // Slowness is believed at once, speed after a while.
        state.usual = if took > usual { (usual + took) / 2 } else { (usual * 7 + took) / 8 };
    }

    /// Opens another connection beside `number` if that has answered nothing since `before`.
    fn suspect(self: &Arc<Self>, operation: &'static str, number: u64, before: u64) {
        // A managed connection replaces itself.
        if matches!(self.connector, Connector::Managed(_)) {
            return;
        }
        let mut state = self.lock();
        if state.is_current(number) && state.answers == before {
            state.suspected_at = Some(before);
            // If the last attempt failed just now, a later call makes the next one.
            let _ = self.attempt(&mut state, operation);
        }
    }

    /// Drops connection `number` if `error` says that it is of no more use.
    fn consider(&self, operation: &'static str, number: u64, error: &RedisError) {
        if !ends_connection(error) || matches!(self.connector, Connector::Managed(_)) {
            return;
        }
        let mut state = self.lock();
        if state.is_current(number) {
            tracing::debug!(%error, "a connection to Redis is given up");
            if error.is_timeout() {
                let (when, pause, timeouts) = (Instant::now(), Duration::ZERO, 0);
                state.failure = Some(Failure { when, pause, error: silent(operation), timeouts });
            }
            state.current = None;
        }
    }
}

/// Nothing is known of what was sent.
fn silent(operation: &'static str) -> Error {
    let what = "the server does not answer; another connection to it is tried in the background";
    Error::new(ErrorKind::Timeout, operation, what)
}

/// Nothing was sent that could have been applied.
fn no_connection(operation: &'static str, limit: Duration) -> Error {
    let what = format!("no connection could be made within {limit:?}; see to the server and the network");
    Error::new(ErrorKind::Unavailable, operation, what)
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("connected", &self.shared.lock().current.is_some())
            .finish_non_exhaustive()
    }
}
