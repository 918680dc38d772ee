//! Waits until store and source can be used. While the store is down no message is taken; it recovers by itself.

use std::time::Duration;

use onceward::retry::{Backoff, Jitter};
use onceward::store::AdviceLevel;
use onceward::{Consumer, DeadLetters, Error, Scope};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::registry::{self, AnyHandler, OpenStore, Purpose};
use crate::telemetry::Watched;

/// Between two tries: soon at first, and never so long that a store which is up again is left alone.
const BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2), jitter: Jitter::Equal };

/// How often a store that stays down is spoken of.
const REMINDER: Duration = Duration::from_secs(30);

/// What a pipeline is built of.
pub(super) struct Parts {
    pub(super) source: Box<dyn Consumer>,
    pub(super) store: OpenStore,
    /// `None` for a handler that is made together with its store.
    pub(super) handler: Option<AnyHandler>,
    pub(super) dead_letters: Option<DeadLetters>,
}

/// Opens store, handler, source and the place for dead letters, however long they take to answer. `None`: `shutdown` came first.
///
/// # Errors
/// The exit code and one sentence, for what waiting does not mend.
pub(super) async fn open(
    config: &Config,
    scope: &Scope,
    watched: &Watched,
    shutdown: &CancellationToken,
) -> Result<Option<Parts>, Failure> {
    let waits_for = |part: &'static str| {
        move |error: Error| {
            watched.waits_for(part, &error);
            error
        }
    };
    let opened = until_up(shutdown, async || {
        let store = registry::open_store(config, Purpose::Run).await.map_err(waits_for("the store"))?;
        let advice = store.check(config).await.map_err(waits_for("the store"))?;
        registry::check_statement(config, &store).await.map_err(waits_for("the store"))?;
        let handler = registry::open_handler(config, scope).await.map_err(waits_for("the handler"))?;
        let source = registry::open_source(config, scope, store.checkpoints.clone())
            .await
            .map_err(waits_for("the source"))?;
        let dead_letters =
            registry::open_dead_letters(config).await.map_err(waits_for("the dead-letter destination"))?;
        Ok((Parts { source, store, handler, dead_letters }, advice))
    });
    let Some((parts, advice)) = opened.await.map_err(|error| crate::commands::failure(&error))? else {
        return Ok(None);
    };
    for finding in &advice {
        match finding.level {
            // The pipeline checks the store once more when it starts, and logs what is found.
            AdviceLevel::Ok | AdviceLevel::Warning => {}
            AdviceLevel::Error => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("store.{}: {}", config.store.name(), finding.text),
                ));
            }
        }
    }
    Ok(Some(parts))
}

/// Repeats `attempt` while its error is one that may pass. `None`: `shutdown` came first.
pub(in crate::commands) async fn until_up<T>(
    shutdown: &CancellationToken,
    mut attempt: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut rng = fastrand::Rng::new();
    let (mut failures, mut pause) = (0, Duration::ZERO);
    let mut told: Option<Instant> = None;
    loop {
        let answered = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            answered = attempt() => answered,
        };
        match answered {
            Ok(parts) => {
                if failures > 0 {
                    tracing::info!(failures, "all answer");
                }
                return Ok(Some(parts));
            }
            Err(error) if error.is_retryable() => {
                failures += 1;
                if told.is_none_or(|told| told.elapsed() >= REMINDER) {
                    told = Some(Instant::now());
                    tracing::warn!(?error, failures, "not ready: tries again until all answer");
                }
                pause = BACKOFF.delay(failures, pause, &mut rng);
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use onceward::ErrorKind;

    use super::*;

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "open the store", "refused")
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_up_is_found_within_two_seconds_however_long_it_was_down() {
        let (up_at, mut tries) = (Instant::now() + Duration::from_secs(3600), 0);
        let never = CancellationToken::new();
        let opened = until_up(&never, async || {
            tries += 1;
            if Instant::now() < up_at { Err(error(ErrorKind::Unavailable)) } else { Ok(()) }
        });
        assert_eq!(opened.await.unwrap(), Some(()));
        assert!(up_at.elapsed() <= Duration::from_secs(2), "{:?}", up_at.elapsed());
        assert!(tries < 3700, "{tries} tries in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_does_not_mend_ends_at_once_and_a_shutdown_ends_the_wait() {
        for kind in [ErrorKind::Config, ErrorKind::Denied, ErrorKind::Corrupt] {
            let ended = until_up(&CancellationToken::new(), async || Err::<(), _>(error(kind))).await;
            assert_eq!(ended.unwrap_err().kind(), kind);
        }
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.cancel();
        });
        let ended = until_up(&shutdown, async || Err::<(), _>(error(ErrorKind::Timeout))).await;
        assert_eq!(ended.unwrap(), None);
    }
}
