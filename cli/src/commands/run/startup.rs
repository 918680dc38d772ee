//! Opens what a run needs, and waits for what does not answer yet. No message is taken before.

use std::cell::Cell;
use std::error::Error as _;
use std::io;
use std::time::Duration;

use onceward::retry::{Backoff, Jitter};
use onceward::store::AdviceLevel;
use onceward::{Consumer, DeadLetters, Error, ErrorKind, Scope, Verdict};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::registry::{self, AnyHandler, OpenStore, Purpose};
use crate::telemetry::Watched;

/// Between two tries: soon at first, and never so long that a store which is up again is left alone.
const BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2), jitter: Jitter::Equal };

/// How often it is logged that something does not answer.
const REMINDER: Duration = Duration::from_secs(30);

/// What a pipeline is built of.
pub(super) struct Parts {
    pub(super) source: Box<dyn Consumer>,
    pub(super) store: OpenStore,
    /// `None` for a handler that is made together with its store.
    pub(super) handler: Option<AnyHandler>,
    pub(super) dead_letters: Option<DeadLetters>,
}

/// How long to wait for what does not answer.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Patience {
    /// Without end where there is none.
    pub(in crate::commands) until: Option<Instant>,
    /// The run ends by itself, so that somebody waits for its end: what only a person can change fails it.
    pub(in crate::commands) is_finite: bool,
}

impl Patience {
    /// As long as it takes.
    pub(in crate::commands) const ENDLESS: Self = Self { until: None, is_finite: false };
}

/// Opens store, handler, the place for dead letters and then the source. `None`: `shutdown` came first.
///
/// # Errors
/// The exit code and one sentence, for what waiting does not change, or when `patience` is over.
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
            look(handler, patience).await?;
        }
        part.set("dead-letter destination");
        let dead_letters = registry::open_dead_letters(config).await?;
        // Last: a source that is open has messages, and each start that then fails would give them back, which uses deliveries.
        part.set("source");
        let source = registry::open_source(config, scope, store.checkpoints.clone()).await?;
        Ok((Parts { source, store, handler, dead_letters }, advice))
    };
    let opened = until_up(&part, patience, shutdown, async || {
        attempt().await.inspect_err(|error| watched.waits_for(part.get(), error))
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

/// A program that cannot be started is an error. A service that is down may come up: a run that does not end takes messages
/// meanwhile, which use no attempt while it is down.
async fn look(handler: &AnyHandler, patience: Patience) -> Result<(), Error> {
    match handler.check().await {
        Err(error) if error.is_retryable() && !patience.is_finite => {
            tracing::warn!(?error, "the handler is not ready; messages wait and use no attempt until it is");
            Ok(())
        }
        checked => checked,
    }
}

/// Starts what the handler keeps running between messages. `None`: `shutdown` came first.
///
/// # Errors
/// When `patience` is over, or what the handler needs cannot be used.
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
    started.await.map_err(|error| crate::commands::failure(&error))
}

/// Repeats `attempt` while its error is one that may pass, and `patience` lasts. `part` names what was tried last. `None`:
/// `shutdown` came first.
///
/// # Errors
/// The last one.
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
                    tracing::info!(failures, "all parts answer now");
                }
                return Ok(Some(parts));
            }
            None => return Err(last.unwrap_or_else(|| silent(part))),
            Some(Err(error)) if !error.is_retryable() || (patience.is_finite && needs_a_person(&error)) => {
                return Err(error);
            }
            Some(Err(error)) => {
                failures += 1;
                if logged.is_none_or(|(at, of)| at.elapsed() >= REMINDER || of != part) {
                    logged = Some((Instant::now(), part));
                    tracing::warn!(
                        ?error,
                        failures,
                        "waits for the {part}, and tries again until it answers"
                    );
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

fn silent(part: &str) -> Error {
    let what =
        format!("the {part} did not answer within the startup timeout; raise it with --startup-timeout");
    Error::new(ErrorKind::Timeout, "start the run", what)
}

/// A file that is missing or not accessible stays so until somebody changes that.
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
    async fn what_waiting_does_not_mend_ends_at_once_and_a_shutdown_ends_the_wait() {
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
    async fn a_run_that_ends_by_itself_waits_for_a_while_and_not_for_what_a_person_must_change() {
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
        assert!(ended.to_string().contains("the source did not answer"), "{ended}");
    }
}
