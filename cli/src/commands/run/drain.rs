//! Bounds the duration of a shutdown.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::output::complain;

/// The time for closing source, store and worker processes, after the drain deadline and the grace of handlers.
const ENDING: Duration = Duration::from_secs(3);

/// The least time for worker processes to end once their input is closed, however long the drain took.
const LEAST_END: Duration = Duration::from_secs(1);

/// The most time for worker processes, or the connections of the store, to end.
pub(super) const MOST_END: Duration = Duration::from_secs(5);

/// Abandons `work` if it does not end in time after `shutdown`, before a supervisor kills this program. `None`: it was
/// abandoned.
pub(super) async fn bounded<T>(
    config: &Config,
    shutdown: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    let pipeline = &config.pipeline;
    let limit =
        pipeline.drain_timeout.get().saturating_add(pipeline.cancel_grace.get()).saturating_add(ENDING);
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        biased;
        ended = work => Some(ended),
        () = late => {
            complain(format!(
                "the shutdown did not complete within {limit:?}, for example because the broker or the store does not respond; \
                 unfinished messages are redelivered"
            ));
            None
        }
    }
}

/// Awaits `work`, and returns for how long it continued after `shutdown`.
pub(super) async fn timed<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> (T, Duration) {
    tokio::pin!(work);
    tokio::select! {
        biased;
        ended = &mut work => return (ended, Duration::ZERO),
        () = shutdown.cancelled() => {}
    }
    let begun = Instant::now();
    (work.await, begun.elapsed())
}

/// The time left for worker processes after a drain that took `drained`.
pub(super) fn left(config: &Config, drained: Duration) -> Duration {
    config.pipeline.drain_timeout.get().saturating_sub(drained).clamp(LEAST_END, MOST_END)
}
