//! Opens the parts of a run, and waits until all are ready. No message is consumed before.

use std::cell::Cell;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Consumer, Replies};
use onceward::retry::{Backoff, Jitter};
use onceward::store::AdviceLevel;
use onceward::{DeadLetters, Error, ErrorKind, Scope, Verdict};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::registry::{self, AnyHandler, OpenStore, Purpose};
use crate::telemetry::Watched;

/// The pauses between attempts, short enough to notice soon that a store is up again.
const BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2), jitter: Jitter::Equal };

/// The interval between log lines about a part that is not ready.
const REMINDER: Duration = Duration::from_secs(30);

/// The parts of a pipeline.
pub(super) struct Parts {
    pub(super) source: Box<dyn Consumer>,
    pub(super) store: OpenStore,
    /// `None` for a handler that is created together with its store.
    pub(super) handler: Option<AnyHandler>,
    pub(super) dead_letters: Option<DeadLetters>,
    pub(super) replies: Option<Arc<dyn Replies>>,
}

/// How long to wait for parts that are not ready.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Patience {
    /// The deadline; `None` waits without end.
    pub(in crate::commands) until: Option<Instant>,
    /// True for a run that ends by itself: it fails at once on errors that waiting cannot fix.
    pub(in crate::commands) is_finite: bool,
}

impl Patience {
    /// Waits without end.
    pub(in crate::commands) const ENDLESS: Self = Self { until: None, is_finite: false };
}

/// Opens the store, the handler, the dead-letter destination and then the source. `None`: `shutdown` fired first.
///
/// # Errors
/// A permanent error, or the last error when `patience` is over.
pub(super) async fn open(
    config: &Config,
    scope: &Scope,
    patience: Patience,
    watched: &Watched,
    shutdown: &CancellationToken,
) -> Result<Option<Parts>, Failure> {
    let part = Cell::new("store");
    let attempt = async || {
        part.set("store");
        let store = registry::open_store(config, Purpose::Run).await?;
        let advice = registry::check_store(config, &store).await?;
        part.set("handler");
        registry::check_statement(config, &store).await?;
        let handler = registry::open_handler(config, scope, shutdown).await?;
        if let Some(handler) = &handler {
            check_handler(handler, patience).await?;
        }
        part.set("dead-letter destination");
        let dead_letters = registry::open_dead_letters(config).await?;
        part.set("publisher of replies");
        let replies = registry::open_replies(config).await?;
        // The source is last: an open source receives messages, and a failed start would return them, which uses deliveries.
        part.set("source");
        let source = registry::open_source(config, scope, store.checkpoints.clone()).await?;
        Ok((Parts { source, store, handler, dead_letters, replies }, advice))
    };
    let opened = until_up(&part, patience, shutdown, async || {
        attempt().await.inspect_err(|error| watched.waits_for(part.get(), error))
    });
    let Some((parts, advice)) = opened.await.map_err(|error| crate::commands::failure::failure(&error))?
    else {
        return Ok(None);
    };
    for finding in &advice {
        match finding.level {
            // The pipeline checks the store again when it starts, and logs the findings.
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

/// Checks the handler. A program that cannot be started is an error. A service that is down may recover: an endless run
/// consumes messages in the meantime, which use no attempt.
async fn check_handler(handler: &AnyHandler, patience: Patience) -> Result<(), Error> {
    match handler.check().await {
        Err(error) if error.is_retryable() && !patience.is_finite => {
            tracing::warn!(?error, "the handler is not ready; messages wait and use no attempt until it is");
            Ok(())
        }
        checked => checked,
    }
}

/// Starts the processes that the handler keeps between messages. `None`: `shutdown` fired first.
///
/// # Errors
/// The handler cannot be started, or `patience` is over.
pub(super) async fn start(
    handler: &AnyHandler,
    patience: Patience,
    shutdown: &CancellationToken,
) -> Result<Option<()>, Failure> {
    let part = Cell::new("handler");
    let started = until_up(&part, patience, shutdown, async || {
        let Err(error) = handler.start().await else { return Ok(()) };
        if !patience.is_finite {
            tracing::warn!(%error, "the handler is not ready; messages wait and use no attempt until it is");
            return Ok(());
        }
        let kind = match error.verdict() {
            Verdict::Permanent => ErrorKind::Config,
            _ => ErrorKind::Unavailable,
        };
        Err(Error::new(kind, "start the handler", error.text().to_owned()))
    });
    started.await.map_err(|error| crate::commands::failure::failure(&error))
}

/// Repeats `attempt` while its error is retryable and `patience` lasts. `part` names the part that was tried last. `None`:
/// `shutdown` fired first.
///
/// # Errors
/// The last error.
pub(in crate::commands) async fn until_up<T>(
    part: &Cell<&'static str>,
    patience: Patience,
    shutdown: &CancellationToken,
    mut attempt: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut rng = fastrand::Rng::new();
    let (mut failures, mut pause) = (0, Duration::ZERO);
    let mut logged: Option<(Instant, &'static str)> = None;
    let mut last = None;
    loop {
        let timed = async {
            match patience.until {
                Some(until) => tokio::time::timeout_at(until, attempt()).await.ok(),
                None => Some(attempt().await),
            }
        };
        let answered = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            answered = timed => answered,
        };
        let part = part.get();
        match answered {
            Some(Ok(parts)) => {
                if failures > 0 {
                    tracing::info!(failures, "all parts are ready");
                }
                return Ok(Some(parts));
            }
            None => return Err(last.unwrap_or_else(|| not_ready(part))),
            Some(Err(error)) if !error.is_retryable() || (patience.is_finite && needs_a_person(&error)) => {
                return Err(error);
            }
            Some(Err(error)) => {
                failures += 1;
                if logged.is_none_or(|(at, of)| at.elapsed() >= REMINDER || of != part) {
                    logged = Some((Instant::now(), part));
                    tracing::warn!(?error, failures, "waiting for the {part}; retrying");
                }
                pause = BACKOFF.delay(failures, pause, &mut rng);
                if patience.until.is_some_and(|until| Instant::now() + pause >= until) {
                    return Err(error);
                }
                last = Some(error);
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn not_ready(part: &str) -> Error {
    let what =
        format!("the {part} was not ready within the startup timeout; raise it with --startup-timeout");
    Error::new(ErrorKind::Timeout, "start the run", what)
}

/// True for a missing or inaccessible file, which waiting does not fix.
fn needs_a_person(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(next) = cause {
        let kind = next.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(
            kind,
            Some(
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::InvalidFilename
            )
        ) {
            return true;
        }
        cause = next.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "open the store", "refused")
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_up_is_found_within_two_seconds_however_long_it_was_down() {
        let (up_at, mut tries) = (Instant::now() + Duration::from_secs(3600), 0);
        let never = CancellationToken::new();
        let part = Cell::new("store");
        let opened = until_up(&part, Patience::ENDLESS, &never, async || {
            tries += 1;
            if Instant::now() < up_at { Err(error(ErrorKind::Unavailable)) } else { Ok(()) }
        });
        assert_eq!(opened.await.unwrap(), Some(()));
        assert!(up_at.elapsed() <= Duration::from_secs(2), "{:?}", up_at.elapsed());
        assert!(tries < 3700, "{tries} tries in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_ends_the_wait_at_once_and_so_does_a_shutdown() {
        for kind in [ErrorKind::Config, ErrorKind::Denied, ErrorKind::Corrupt] {
            let ended =
                until_up(&Cell::new("store"), Patience::ENDLESS, &CancellationToken::new(), async || {
                    Err::<(), _>(error(kind))
                })
                .await;
            assert_eq!(ended.unwrap_err().kind(), kind);
        }
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.cancel();
        });
        let ended = until_up(&Cell::new("store"), Patience::ENDLESS, &shutdown, async || {
            Err::<(), _>(error(ErrorKind::Timeout))
        })
        .await;
        assert_eq!(ended.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_finite_run_waits_for_a_while_and_not_for_permanent_errors() {
        let part = Cell::new("source");
        let never = CancellationToken::new();
        let patience = || Patience { until: Some(Instant::now() + Duration::from_secs(60)), is_finite: true };
        let begun = Instant::now();
        let down = async || Err::<(), _>(error(ErrorKind::Unavailable));
        let ended = until_up(&part, patience(), &never, down).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!((50..=60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

        let begun = Instant::now();
        let denied = async || {
            let cause = io::Error::from(io::ErrorKind::PermissionDenied);
            Err::<(), _>(error(ErrorKind::Unavailable).with_source(cause))
        };
        until_up(&part, patience(), &never, denied).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);

        let hangs = async || std::future::pending::<Result<(), Error>>().await;
        let ended = until_up(&part, patience(), &never, hangs).await.unwrap_err();
        assert!(ended.to_string().contains("the source was not ready"), "{ended}");
    }
}
