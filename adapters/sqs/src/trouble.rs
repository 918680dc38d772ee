//! Repeated failures: logged once and then every minute, retried with growing pauses, and reported to the source's health.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onceward::Error;
use onceward::telemetry::SourceHealth;
use tokio::time::Instant;

/// How often a trouble that lasts is logged.
const REMINDER: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Doubles from 100 ms to 5 s, with jitter over its upper half.
pub(crate) fn pause(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// One thing that is done again and again, and whether it fails.
#[derive(Debug)]
pub(crate) struct Trouble {
    queue: String,
    /// Such as "receiving messages".
    what: &'static str,
    /// The source's, if this is what makes it up or down.
    health: Option<Arc<SourceHealth>>,
    state: Mutex<Option<Ongoing>>,
}

/// Since when it fails.
#[derive(Debug)]
struct Ongoing {
    since: Instant,
    logged: Instant,
    failures: u32,
    /// Until then it is not tried.
    until: Instant,
    last: Error,
}

impl Trouble {
    pub(crate) fn new(queue: &str, what: &'static str, health: Option<Arc<SourceHealth>>) -> Self {
        Self { queue: queue.to_owned(), what, health, state: Mutex::default() }
    }

    /// Notes a success.
    pub(crate) fn over(&self) {
        if let Some(health) = &self.health {
            health.set_up();
        }
        if let Some(was) = self.lock().take() {
            tracing::info!(
                queue = self.queue,
                failures = was.failures,
                lasted_ms = u64::try_from(was.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "{} works again",
                self.what
            );
        }
    }

    /// Notes a failure.
    pub(crate) fn failed(&self, error: &Error) {
        if let Some(health) = &self.health {
            health.set_down(error.to_string());
        }
        let now = Instant::now();
        let mut state = self.lock();
        let is_new = state.is_none();
        let ongoing = state.get_or_insert_with(|| Ongoing {
            since: now,
            logged: now,
            failures: 0,
            until: now,
            last: error.clone(),
        });
        ongoing.until = now + pause(ongoing.failures);
        ongoing.failures = ongoing.failures.saturating_add(1);
        ongoing.last = error.clone();
        if is_new || now.duration_since(ongoing.logged) >= REMINDER {
            ongoing.logged = now;
            tracing::warn!(
                ?error,
                queue = self.queue,
                failures = ongoing.failures,
                since_s = now.duration_since(ongoing.since).as_secs(),
                "{} fails and is repeated",
                self.what
            );
        }
    }

    /// The last error, as long as it is too early for another try.
    pub(crate) fn too_early(&self) -> Option<Error> {
        let state = self.lock();
        let ongoing = state.as_ref().filter(|ongoing| Instant::now() < ongoing.until)?;
        Some(ongoing.last.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ongoing>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use onceward::ErrorKind;
    use onceward::telemetry::SourceState;

    use super::*;

    fn error() -> Error {
        Error::new(ErrorKind::Config, "receive", "there is no such queue")
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_ever_less_often_until_it_works_again() {
        let health = Arc::new(SourceHealth::default());
        let trouble = Trouble::new("q", "receiving", Some(Arc::clone(&health)));
        trouble.over();
        assert_eq!(health.state(), SourceState::Up);
        let mut tries = 0;
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if trouble.too_early().is_none() {
                trouble.failed(&error());
                tries += 1;
            }
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        assert!((12..40).contains(&tries), "{tries}");
        assert!(matches!(health.state(), SourceState::Down(reason) if reason.contains("no such queue")));
        trouble.over();
        assert_eq!((health.state(), health.reconnects()), (SourceState::Up, 1));
        assert!(trouble.too_early().is_none());
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert!((50..=100).contains(&pause(0).as_millis()));
        assert!((2_500..=5_000).contains(&pause(u32::MAX).as_millis()));
    }
}
