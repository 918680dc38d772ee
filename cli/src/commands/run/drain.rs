//! Keeps the whole of a shutdown within its time.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::output::complain;

/// What a shutdown may take beyond the drain's deadline and the handlers' grace: source, store and worker processes are let
/// go of.
const ENDING: Duration = Duration::from_secs(3);

/// How long worker processes may take to end once their input is closed, however long the drain took.
const LEAST_END: Duration = Duration::from_secs(1);

/// How long worker processes, or the store's connections, may take to end at most.
pub(super) const MOST_END: Duration = Duration::from_secs(5);

/// Gives up `work` if it has not ended in time after `shutdown`: whoever stopped this program will kill it soon. `None`: it
/// was given up.
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
                "the shutdown did not end within {limit:?}, as when the broker or the store does not answer; what was \
                 running is delivered again"
            ));
            None
        }
    }
}

/// Awaits `work`, and answers for how long it went on after `shutdown`.
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

/// What is left for worker processes after a drain that took so long.
pub(super) fn left(config: &Config, drained: Duration) -> Duration {
    config.pipeline.drain_timeout.get().saturating_sub(drained).clamp(LEAST_END, MOST_END)
}
