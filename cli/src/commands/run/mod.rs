//! `onceward run`: runs the pipeline until a signal or the end of the source.

mod drain;
mod letters;
mod startup;
mod summary;

pub(super) use startup::{Patience, until_up};

use std::sync::Arc;
use std::time::Duration;

use onceward::Summary;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::config::{self, Config, Handler, HumanDuration, Lookup};
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
    if args.until_empty {
        require_idle_reports(&config)?;
    }
    telemetry::start_export(&config, env)?;
    logging::start(config.telemetry.log, env)?;
    for advice in config.advice().into_iter().chain(super::readable::secrets(&config)) {
        tracing::warn!(code = advice.code(), "{advice}");
    }
    let signals = Signals::catch()?;
    let shutdown = CancellationToken::new();
    let reaping = CancellationToken::new();
    let _until_the_end = reaping.clone().drop_guard();
    let adapter = config.source.name();
    let system = config.source.plugin().messaging_system().unwrap_or(adapter);
    let watched = Watched::run(&config.scope, MessageSource { adapter, system }, shutdown.clone());
    telemetry::expose(&config, &watched).await?;

    tokio::spawn(reap_orphans(reaping.clone()));
    let whole_run = bounded(&config, &shutdown, consume(&config, args, &watched, &shutdown));
    let drained = signals.drain(&shutdown, whole_run, || {
        let drain_timeout = config.pipeline.drain_timeout.to_string();
        tracing::info!(drain_timeout, "draining: intake stopped, waiting for running handlers");
    });
    let ended = match drained.await {
        Ok(Some(ended)) => ended?,
        Ok(None) => return Ok(Exit::DrainDeadline),
        Err(stopped) => {
            tracing::warn!("drain aborted by a second signal; unfinished messages are redelivered");
            return Ok(stopped);
        }
    };
    let Some(summary) = ended else {
        tracing::info!("stopped before the start was complete; no message was consumed");
        return Ok(Exit::Done);
    };
    report(&config, args.until_empty, &summary, out)?;
    Ok(exit(&config, args.until_empty, shutdown.is_cancelled(), &summary))
}

/// Waits until all parts are ready, runs the pipeline until the source ends or `shutdown` fires, and closes everything.
/// `None`: a signal arrived before all parts were ready.
async fn consume(
    config: &Config,
    args: &RunArgs,
    watched: &Watched,
    shutdown: &CancellationToken,
) -> Result<Option<Summary>, Failure> {
    let scope = config::scope(config).map_err(|error| super::failure::failure(&error))?;
    let patience = patience(config, args);
    let opened = startup::open(config, &scope, patience, watched, shutdown);
    let Some(parts) = opened.await? else { return Ok(None) };
    let startup::Parts { source, store, handler, dead_letters } = parts;
    if let Some(handler) = &handler
        && startup::start(handler, patience, shutdown).await?.is_none()
    {
        return Ok(None);
    }
    let parts = registry::BuildParts {
        source,
        store: &store,
        handler,
        dead_letters,
        observer: telemetry::observer(config, watched),
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
    let (running, rest) = ready.start(shutdown.clone());
    let (ended, drained) = tokio::select! {
        biased;
        ended = drain::timed(shutdown, running) => ended,
        never = letters::observe(config, &scope, &store, watched, &counters) => match never {},
    };
    let abandoned = !matches!(&ended, Ok(summary) if summary.abandoned_runs() == 0);
    rest.end(if abandoned { Duration::ZERO } else { drain::left(config, drained) }).await;
    if tokio::time::timeout(drain::MOST_END, store.close()).await.is_err() {
        tracing::warn!("closing the store timed out; its connections were dropped");
    }
    ended.map(Some).map_err(|error| super::failure::failure(&error))
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

fn exit(config: &Config, until_empty: bool, stopped: bool, summary: &Summary) -> Exit {
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
    if is_finite(config, until_empty) && !stopped && failed > 0 {
        return Exit::DeadLetters;
    }
    Exit::Done
}
