//! `onceward run`: consume until a signal comes or the source ends.

mod startup;
mod summary;

pub(super) use startup::until_up;

use onceward::Summary;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::config::{Config, Handler, Lookup, Source};
use crate::exit::{Exit, Failure};
use crate::output::{Output, complain};
use crate::signals::Signals;
use crate::telemetry::{self, Watched};
use crate::{logging, registry};

/// Runs the pipeline of a configuration. The first signal drains; the second ends the program at once.
pub(super) async fn run(args: &RunArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::load(&args.config.file, env)?;
    logging::start(config.telemetry.log, env)?;
    for advice in config.advice() {
        tracing::warn!("{advice}");
    }
    let signals = Signals::catch()?;
    let shutdown = CancellationToken::new();
    let watched = Watched::run(&config.scope, shutdown.clone());
    telemetry::listen(&config, &watched).await?;

    let whole_run = consume(&config, args.until_empty, &watched, &shutdown);
    let drained = signals.drain(&shutdown, whole_run, || {
        let drain_timeout = config.pipeline.drain_timeout.to_string();
        tracing::info!(drain_timeout, "draining: takes no more messages and waits for those that run");
    });
    let ended = match drained.await {
        Ok(ended) => ended?,
        Err(stopped) => {
            tracing::warn!("stopped by a second signal; what was running comes again");
            return Ok(stopped);
        }
    };
    let Some(summary) = ended else {
        tracing::info!("stopped before all parts answered; no message was taken");
        return Ok(Exit::Done);
    };
    report(&config, args.until_empty, &summary, out)?;
    Ok(exit(&config, args.until_empty, shutdown.is_cancelled(), &summary))
}

/// Waits for the store, takes messages until the source ends or `shutdown` fires, and lets go of everything. `None`: a
/// signal came before the store answered.
async fn consume(
    config: &Config,
    until_empty: bool,
    watched: &Watched,
    shutdown: &CancellationToken,
) -> Result<Option<Summary>, Failure> {
    let scope = registry::scope(config).map_err(|error| super::failure(&error))?;
    let Some(parts) = startup::open(config, &scope, watched, shutdown).await? else { return Ok(None) };
    let startup::Parts { source, store, handler, dead_letters } = parts;
    let built = registry::build(config, &scope, source, &store, handler, dead_letters, until_empty).await;
    let ready = built.map_err(|error| super::failure(&error))?;
    watched.started(std::sync::Arc::clone(&ready.counters));
    tracing::info!(
        scope = %scope,
        guarantee = ready.guarantee,
        source = registry::describe_source(config),
        store = registry::describe_store(config),
        handler = config.handler.name(),
        "runs"
    );
    let (running, rest) = ready.start(shutdown.clone());
    let ended = running.await;
    rest.end(!matches!(&ended, Ok(summary) if summary.abandoned_runs() == 0)).await;
    store.close().await;
    ended.map(Some).map_err(|error| super::failure(&error))
}

/// True where the run ends by itself, so that its figures are a result.
fn is_finite(config: &Config, until_empty: bool) -> bool {
    until_empty || matches!(&config.source, Source::File(file) if !file.follow)
}

/// A finite run's figures are its output; an endless one's belong to its log. Where the handler writes messages to
/// standard output, the figures go to standard error, so as not to become one of them.
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
            "the drain deadline passed with {runs} handlers still running; they were cut and their messages come again; \
             raise pipeline.drain_timeout if they should have ended"
        ));
        return Exit::DrainDeadline;
    }
    if is_finite(config, until_empty) && !stopped && summary.dead_lettered() + summary.parked() > 0 {
        return Exit::DeadLetters;
    }
    Exit::Done
}
