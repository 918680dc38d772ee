//! Health of a repeated operation: failures are logged once a minute, retried with backoff, and reported
//! to the source: [`OperationHealth`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onceward::Error;
use onceward::telemetry::{RateLimited, SourceHealth};
use tokio::time::Instant;

/// The interval between lines about failures of one operation, whether it fails all the time or now and then.
const REMINDER: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Backoff: doubles from 100 ms to 5 s, with jitter over its upper half.
pub(crate) fn backoff(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// A repeated operation, and whether it currently fails.
#[derive(Debug)]
pub(crate) struct OperationHealth {
    queue: String,
    /// Such as "receiving messages".
    operation: &'static str,
    /// The health of the source, if this operation determines it.
    health: Option<Arc<SourceHealth>>,
    state: Mutex<Option<FailureSeries>>,
    lines: RateLimited,
}

/// A series of failures.
#[derive(Debug)]
struct FailureSeries {
    since: Instant,
    is_logged: bool,
    failures: u32,
    /// No attempt before this.
    until: Instant,
    last: Error,
}

impl OperationHealth {
    pub(crate) fn new(queue: &str, operation: &'static str, health: Option<Arc<SourceHealth>>) -> Self {
        Self {
            queue: queue.to_owned(),
            operation,
            health,
            state: Mutex::default(),
            lines: RateLimited::per(REMINDER),
        }
    }

    /// Records a success.
    pub(crate) fn succeeded(&self) {
        if let Some(health) = &self.health {
            health.set_up();
        }
        if let Some(was) = self.lock().take().filter(|was| was.is_logged) {
            tracing::info!(
                queue = self.queue,
                failures = was.failures,
                lasted_ms = u64::try_from(was.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "{} succeeded again",
                self.operation
            );
        }
    }

    /// Records a failure.
    pub(crate) fn failed(&self, error: &Error) {
        if let Some(health) = &self.health {
            health.set_down(error.to_string());
        }
        let now = Instant::now();
        let mut state = self.lock();
        let series = state.get_or_insert_with(|| FailureSeries {
            since: now,
            is_logged: false,
            failures: 0,
            until: now,
            last: error.clone(),
        });
        series.until = now + backoff(series.failures);
        series.failures = series.failures.saturating_add(1);
        series.last = error.clone();
        if let Some(left_out) = self.lines.allow("") {
            series.is_logged = true;
            tracing::warn!(
                ?error,
                queue = self.queue,
                failures = series.failures,
                left_out,
                since_s = now.duration_since(series.since).as_secs(),
                "{} failed; retrying",
                self.operation
            );
        }
    }

    /// The last error, while it is too early for another attempt.
    pub(crate) fn too_early(&self) -> Option<Error> {
        let state = self.lock();
        let series = state.as_ref().filter(|series| Instant::now() < series.until)?;
        Some(series.last.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<FailureSeries>> {
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
    async fn a_failing_operation_is_retried_with_backoff_until_it_succeeds() {
        let health = Arc::new(SourceHealth::default());
        let operation = OperationHealth::new("q", "receiving", Some(Arc::clone(&health)));
        operation.succeeded();
        assert_eq!(health.state(), SourceState::Up);
        let mut tries = 0;
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if operation.too_early().is_none() {
                operation.failed(&error());
                tries += 1;
            }
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        assert!((12..40).contains(&tries), "{tries}");
        assert!(matches!(health.state(), SourceState::Down(reason) if reason.contains("no such queue")));
        operation.succeeded();
        assert_eq!((health.state(), health.reconnects()), (SourceState::Up, 1));
        assert!(operation.too_early().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_that_fails_now_and_then_has_a_line_a_minute() {
        let operation = OperationHealth::new("q", "receiving", None);
        let mut logged = 0;
        for _ in 0..120 {
            operation.failed(&error());
            logged += usize::from(operation.lock().as_ref().is_some_and(|series| series.is_logged));
            operation.succeeded();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(logged, 2);
    }

    #[test]
    fn the_backoff_grows_to_a_limit() {
        assert!((50..=100).contains(&backoff(0).as_millis()));
        assert!((2_500..=5_000).contains(&backoff(u32::MAX).as_millis()));
    }
}
