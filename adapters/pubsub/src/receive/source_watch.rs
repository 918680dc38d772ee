//! The state of the source, from what the stream and the network report: [`SourceWatch`].

use std::sync::Arc;
use std::time::Duration;

use onceward::Error;
use onceward::telemetry::SourceHealth;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::reachability::Reachability;

/// The interval at which the server is checked while no messages arrive.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The interval while it is unreachable.
const DOWN_INTERVAL: Duration = Duration::from_millis(500);
/// The interval between lines about failures, whether one lasts or many follow each other.
const REMINDER: Duration = Duration::from_secs(60);

/// The state of the source: down while its stream fails or the server is unreachable.
pub(crate) struct SourceWatch {
    subscription: Arc<str>,
    health: Arc<SourceHealth>,
    state: Mutex<WatchState>,
    recovered: Notify,
}

#[derive(Default)]
struct WatchState {
    stream_failure: Option<Error>,
    network_failure: Option<Error>,
    last_message: Option<Instant>,
    down_since: Option<Instant>,
    /// When a failure was logged last, of this one or of one before.
    logged: Option<Instant>,
    /// The current failure was logged.
    is_logged: bool,
}

impl SourceWatch {
    pub(crate) fn new(subscription: Arc<str>, health: Arc<SourceHealth>) -> Self {
        Self { subscription, health, state: Mutex::default(), recovered: Notify::new() }
    }

    /// Messages have arrived.
    pub(crate) fn received(&self) {
        self.health.received();
        let mut state = self.state.lock();
        state.last_message = Some(Instant::now());
        (state.stream_failure, state.network_failure) = (None, None);
        self.update(&mut state);
    }

    /// The stream has been open for a while.
    pub(crate) fn stream_is_steady(&self) {
        let mut state = self.state.lock();
        state.stream_failure = None;
        self.update(&mut state);
    }

    /// The stream ended with an error that the client library does not retry.
    pub(crate) fn stream_failed(&self, error: Error) {
        let mut state = self.state.lock();
        state.stream_failure = Some(error);
        self.update(&mut state);
    }

    /// Resolves when the server is reachable again, so that the client library's backoff can be cut short.
    pub(crate) async fn recovered(&self) {
        self.recovered.notified().await;
    }

    /// Checks the server at intervals.
    pub(crate) async fn check_network(&self, server: Reachability) {
        loop {
            let is_down = self.state.lock().network_failure.is_some();
            tokio::time::sleep(if is_down { DOWN_INTERVAL } else { CHECK_INTERVAL }).await;
            let is_fresh = |at: Instant| at.elapsed() < CHECK_INTERVAL;
            if !is_down && self.state.lock().last_message.is_some_and(is_fresh) {
                continue;
            }
            let failure = server.check().await.err();
            let mut state = self.state.lock();
            if state.network_failure.is_some() && failure.is_none() {
                self.recovered.notify_one();
            }
            state.network_failure = failure;
            self.update(&mut state);
        }
    }

    fn update(&self, state: &mut WatchState) {
        let now = Instant::now();
        match state.stream_failure.as_ref().or(state.network_failure.as_ref()) {
            None => {
                self.health.set_up();
                let is_logged = std::mem::take(&mut state.is_logged);
                if let Some(since) = state.down_since.take().filter(|_| is_logged) {
                    let lasted_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(
                        subscription = &*self.subscription,
                        lasted_ms,
                        "receiving messages succeeded again"
                    );
                }
            }
            Some(error) => {
                self.health.set_down(error.to_string());
                let since = *state.down_since.get_or_insert(now);
                if state.logged.is_none_or(|logged| now.duration_since(logged) >= REMINDER) {
                    (state.logged, state.is_logged) = (Some(now), true);
                    let since_s = now.duration_since(since).as_secs();
                    tracing::warn!(
                        ?error,
                        subscription = &*self.subscription,
                        since_s,
                        "receiving messages failed; retrying"
                    );
                }
            }
        }
    }
}
