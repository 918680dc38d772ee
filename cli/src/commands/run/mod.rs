//! `onceward run`: runs the pipeline until a signal or the end of the source.

mod audit_trail;
mod drain;
mod letters;
mod startup;
mod summary;

pub(super) use startup::{Patience, until_up};

use std::sync::Arc;
use std::time::Duration;

use onceward::Summary;
use onceward::telemetry::Observer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::commands::dlq::LetterDesk;
use crate::config::{self, Advice, Config, Handler, HumanDuration, Lookup};
use crate::exit::{Exit, Failure};
use crate::handlers::reap_orphans;
use crate::output::{Output, complain};
use crate::signals::Signals;
use crate::telemetry::{self, MessageSource, Watched};
use crate::{logging, registry};

use drain::bounded;

/// Runs the pipeline of a configuration. The first signal drains it; the second ends the program at once.
pub(super) async fn run(args: &RunArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::failure::load(&args.config.file, env)?;
    let attached = Attached { advice: config.advice(), ..Attached::default() };
    match supervise(&config, args, attached, env).await? {
        SupervisedEnd::Stopped(exit) => Ok(exit),
        SupervisedEnd::Ended(ended) => {
            report(&config, args.until_empty, &ended.summary, out)?;
            Ok(exit(&config, args.until_empty, &ended))
        }
    }
}

/// What a command adds to a run.
#[derive(Default)]
pub(super) struct Attached {
    /// Logged at the start.
    pub(super) advice: Vec<Advice>,
    /// Logged after it.
    pub(super) notice: Option<&'static str>,
    /// Receives the measurements, beside the telemetry.
    pub(super) observer: Option<Arc<dyn Observer>>,
    /// The run is drained this long after its first message could be received.
    pub(super) limit: Option<Duration>,
}

/// How a supervised run ended.
pub(super) enum SupervisedEnd {
    /// Its pipeline never started, or was dropped: the program ends with this code.
    Stopped(Exit),
    /// Its pipeline ended.
    Ended(EndedRun),
}

/// A run whose pipeline ended.
pub(super) struct EndedRun {
    pub(super) summary: Summary,
    /// For how long messages could be received.
    pub(super) lasted: Duration,
    /// How long the source keeps messages, if it names a limit.
    pub(super) retention: Option<Duration>,
    /// Why it ended.
    pub(super) cause: EndCause,
}

/// Why a pipeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndCause {
    /// The source has ended, or was idle.
    Empty,
    /// The time limit of the command.
    Limit,
    /// A signal.
    Signal,
}

/// Runs the pipeline of `config`, drains it after the first signal and drops it after the second.
///
/// # Errors
/// A part cannot be opened or used.
pub(super) async fn supervise(
    config: &Config,
    args: &RunArgs,
    attached: Attached,
    env: Lookup<'_>,
) -> Result<SupervisedEnd, Failure> {
    if args.until_empty {
        require_idle_reports(config)?;
    }
    telemetry::start_export(config, env)?;
    logging::start(config.telemetry.log, env)?;
    for advice in attached.advice.iter().chain(&super::readable::secrets(config)) {
        tracing::warn!(code = advice.code(), "{advice}");
    }
    if let Some(notice) = attached.notice {
        tracing::warn!("{notice}");
    }
    let signals = Signals::catch()?;
    let shutdown = CancellationToken::new();
    let reaping = CancellationToken::new();
    let _until_the_end = reaping.clone().drop_guard();
    let adapter = config.source.name();
    let system = config.source.plugin().messaging_system().unwrap_or(adapter);
    let watched = Watched::run(&config.scope, MessageSource { adapter, system }, shutdown.clone());
    let desk = LetterDesk::new(config, &args.config.file);
    telemetry::expose(config, &watched, Some(Arc::new(desk))).await?;

    tokio::spawn(reap_orphans(reaping.clone()));
    let whole_run = bounded(config, &shutdown, consume(config, args, attached, &watched, &shutdown));
    let drained = signals.drain(&shutdown, whole_run, || {
        let drain_timeout = config.pipeline.drain_timeout.to_string();
        tracing::info!(drain_timeout, "draining: intake stopped, waiting for running handlers");
    });
    let ended = match drained.await {
        Ok(Some(ended)) => ended?,
        Ok(None) => return Ok(SupervisedEnd::Stopped(Exit::DrainDeadline)),
        Err(stopped) => {
            tracing::warn!("drain aborted by a second signal; unfinished messages are redelivered");
            return Ok(SupervisedEnd::Stopped(stopped));
        }
    };
    let Some(ended) = ended else {
        tracing::info!("stopped before the start was complete; no message was consumed");
        return Ok(SupervisedEnd::Stopped(Exit::Done));
    };
    Ok(SupervisedEnd::Ended(ended))
}

/// Waits until all parts are ready, runs the pipeline until the source ends, the time limit is reached or `shutdown` fires, and
/// closes everything. `None`: a signal arrived before all parts were ready.
async fn consume(
    config: &Config,
    args: &RunArgs,
    attached: Attached,
    watched: &Watched,
    shutdown: &CancellationToken,
) -> Result<Option<EndedRun>, Failure> {
    let scope = config::scope(config).map_err(|error| super::failure::failure(&error))?;
    let patience = patience(config, args);
    let opened = startup::open(config, &scope, patience, watched, shutdown);
    let Some(parts) = opened.await? else { return Ok(None) };
    let startup::Parts { source, store, handler, dead_letters, replies } = parts;
    if let Some(handler) = &handler
        && startup::start(handler, patience, shutdown).await?.is_none()
    {
        return Ok(None);
    }
    let retention = source.capabilities().retention;
    let parts = registry::BuildParts {
        source,
        store: &store,
        handler,
        dead_letters,
        replies,
        observer: telemetry::observer(config, watched, attached.observer),
    };
    let built = registry::build(config, &scope, parts, args.until_empty).await;
    let ready = built.map_err(|error| super::failure::failure(&error))?;
    let counters = ready.counters();
    watched.started(Arc::clone(&counters));
    tracing::info!(
        scope = %scope,
        guarantee = ready.guarantee(),
        source = registry::describe_source(config),
        store = registry::describe_store(config),
        handler = config.handler.name(),
        "pipeline started"
    );
    let started = Instant::now();
    let (running, rest) = ready.start(shutdown.clone());
    let running = limited(running, attached.limit, shutdown);
    let ((ended, cause), drained) = tokio::select! {
        biased;
        ended = drain::timed(shutdown, running) => ended,
        never = letters::observe(config, &scope, &store, watched, &counters) => match never {},
        never = audit_trail::clean(config, &scope, &store) => match never {},
    };
    let lasted = started.elapsed();
    let abandoned = !matches!(&ended, Ok(summary) if summary.abandoned_runs() == 0);
    rest.end(if abandoned { Duration::ZERO } else { drain::left(config, drained) }).await;
    if tokio::time::timeout(drain::MOST_END, store.close()).await.is_err() {
        tracing::warn!("closing the store timed out; its connections were dropped");
    }
    let summary = ended.map_err(|error| super::failure::failure(&error))?;
    Ok(Some(EndedRun { summary, lasted, retention, cause }))
}

/// Awaits `running`, fires `shutdown` once `limit` has passed, and returns why it ended.
async fn limited<T>(
    running: impl Future<Output = T>,
    limit: Option<Duration>,
    shutdown: &CancellationToken,
) -> (T, EndCause) {
    tokio::pin!(running);
    let limit = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        ended = &mut running => {
            let cause = if shutdown.is_cancelled() { EndCause::Signal } else { EndCause::Empty };
            return (ended, cause);
        }
        () = shutdown.cancelled() => return (running.await, EndCause::Signal),
        () = limit => {}
    }
    tracing::info!("time limit reached; draining");
    shutdown.cancel();
    (running.await, EndCause::Limit)
}

/// Refuses `--until-empty` for a source that cannot report whether it is idle: the run would never end.
fn require_idle_reports(config: &Config) -> Result<(), Failure> {
    let facts = config.source.plugin().facts();
    if facts.reports_idle || facts.ends {
        return Ok(());
    }
    let sentence = format!(
        "--until-empty: [source.{}] cannot report whether it is idle, so that the run would never end; leave the flag out, and \
         stop the run with a signal",
        config.source.name()
    );
    Err(Failure::new(Exit::Usage, sentence))
}

/// The default startup timeout of a run that ends by itself.
const FINITE_STARTUP: Duration = Duration::from_secs(60);

fn patience(config: &Config, args: &RunArgs) -> Patience {
    let is_finite = is_finite(config, args.until_empty);
    let limit = args.startup_timeout.map(HumanDuration::get).or(is_finite.then_some(FINITE_STARTUP));
    Patience { until: limit.map(|limit| Instant::now() + limit), is_finite }
}

/// True if the run ends by itself, so that its counters are a result.
fn is_finite(config: &Config, until_empty: bool) -> bool {
    until_empty || config.source.plugin().facts().ends
}

/// Prints the counters: a finite run to standard output, or to standard error if the handler writes messages to standard
/// output; an endless run to its log.
fn report(config: &Config, until_empty: bool, summary: &Summary, out: &mut Output) -> Result<(), Failure> {
    let line = summary::line(summary);
    match config.handler {
        _ if !is_finite(config, until_empty) => tracing::info!("{line}"),
        Handler::Stdout(_) => complain(line),
        _ => out.line(line)?,
    }
    Ok(())
}

/// The exit code of a run that ended.
pub(super) fn exit(config: &Config, until_empty: bool, ended: &EndedRun) -> Exit {
    let summary = &ended.summary;
    if summary.abandoned_runs() > 0 {
        let runs = summary.abandoned_runs();
        complain(format!(
            "the drain deadline passed with {runs} handlers still running; they were stopped, and their messages are redelivered; \
             raise pipeline.drain_timeout if they need more time"
        ));
        return Exit::DrainDeadline;
    }
    let dropped = summary.counters().get(onceward::telemetry::Counter::LettersDropped);
    let failed = summary.dead_lettered() + summary.parked() + dropped;
    if is_finite(config, until_empty) && ended.cause == EndCause::Empty && failed > 0 {
        return Exit::DeadLetters;
    }
    Exit::Done
}
