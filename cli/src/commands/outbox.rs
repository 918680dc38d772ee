//! `onceward outbox relay` and `onceward outbox status`: what handlers put into the outbox, and its way out.

use std::cell::Cell;
use std::sync::Arc;

use onceward::outbox::{OutboxStatus, RelayCounts};
use onceward::store::AdviceLevel;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::run::{Patience, until_up};
use crate::args::{FileArgs, OutboxCommand, ReportArgs};
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::logging;
use crate::output::Output;
use crate::registry::{self, Purpose, ReadyRelay};
use crate::signals::Signals;
use crate::telemetry::{self, Watched};

pub(super) async fn outbox(
    command: &OutboxCommand,
    env: Lookup<'_>,
    out: &mut Output,
) -> Result<Exit, Failure> {
    match command {
        OutboxCommand::Relay(args) => relay(args, env).await,
        OutboxCommand::Status(args) => status(args, env, out).await,
    }
}

/// Publishes until a signal comes; a batch that is under way is finished first. The second signal ends at once.
async fn relay(args: &FileArgs, env: Lookup<'_>) -> Result<Exit, Failure> {
    let config = super::load(&args.file, env)?;
    logging::start(config.telemetry.log, env)?;
    for remark in super::readable::secrets(&config) {
        tracing::warn!("{remark}");
    }
    let signals = Signals::catch()?;
    let shutdown = CancellationToken::new();
    let watched = Watched::relay(&config.scope, shutdown.clone());
    telemetry::listen(&config, &watched).await?;
    let whole_run = publish(&config, &watched, &shutdown);
    match signals.drain(&shutdown, whole_run, || tracing::info!("finishes what is under way")).await {
        Ok(ended) => ended.map(|()| Exit::Done),
        Err(stopped) => {
            tracing::warn!("stopped by a second signal; what was under way may be sent again");
            Ok(stopped)
        }
    }
}

async fn publish(config: &Config, watched: &Watched, shutdown: &CancellationToken) -> Result<(), Failure> {
    let part = Cell::new("store");
    let attempt = async || {
        part.set("store");
        let store = registry::open_store(config, Purpose::Operate).await?;
        let advice = registry::check_store(config, &store).await?;
        part.set("broker");
        let relay = registry::open_relay(config, &store, shutdown.clone()).await?;
        Ok((store, advice, relay))
    };
    let opened = until_up(&part, Patience::ENDLESS, shutdown, async || {
        attempt().await.inspect_err(|error| watched.waits_for(part.get(), error))
    });
    let Some((store, advice, relay)) = opened.await.map_err(|error| super::failure(&error))? else {
        return Ok(());
    };
    for finding in advice.iter().filter(|finding| finding.level != AdviceLevel::Ok) {
        tracing::warn!("{}", finding.text);
    }
    let ReadyRelay { counts, running } = relay;
    watched.relays(Arc::clone(&counts));
    let (from, to) = (registry::describe_store(config), registry::describe_outbox_target(config));
    tracing::info!(from, to, "relays");
    let ended = running.await;
    tell(&counts);
    store.close().await;
    ended.map_err(|error| super::failure(&error))
}

fn tell(counts: &RelayCounts) {
    let (published, failed, cleaned) = (counts.published(), counts.failed(), counts.cleaned());
    tracing::info!("published={published} failed={failed} cleaned={cleaned}");
}

/// Reports, without changing anything; it may be called while relays run.
async fn status(args: &ReportArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::load(&args.config.file, env)?;
    let failed = |error| super::failure(&error);
    let store = registry::open_store(&config, Purpose::Operate).await.map_err(failed)?;
    let found = registry::outbox_status(&config, &store).await;
    store.close().await;
    let found = found.map_err(failed)?;
    if args.json {
        out.json(&as_json(&config, &found))?
    } else {
        print(&config, &found, out)?
    }
    Ok(Exit::Done)
}

fn as_json(config: &Config, status: &OutboxStatus) -> Value {
    let failing = status.worst.iter().map(|row| {
        json!({
            "seq": row.seq,
            "id": row.id,
            "destination": row.destination,
            "attempts": row.attempts,
            "error": row.error,
        })
    });
    json!({
        "store": registry::describe_store(config),
        "to": registry::describe_outbox_target(config),
        "waiting": status.waiting,
        "failing": status.failing,
        "held": status.held,
        "oldest_ms": status.oldest.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        "kept": status.kept,
        "worst": failing.collect::<Vec<_>>(),
    })
}

fn print(config: &Config, status: &OutboxStatus, out: &mut Output) -> Result<(), Failure> {
    let oldest = match status.oldest {
        Some(age) => format!(
            ", the oldest for {}",
            humantime::format_duration(std::time::Duration::from_secs(age.as_secs()))
        ),
        None => String::new(),
    };
    for (name, value) in [
        ("store", registry::describe_store(config)),
        ("to", registry::describe_outbox_target(config)),
        ("waiting", format!("{}{oldest}", status.waiting)),
        ("failing", format!("{}, {} wait behind them", status.failing, status.held)),
        ("kept", format!("{} published", status.kept)),
    ] {
        out.line(format_args!("{name:<12} {value}"))?;
    }
    for row in &status.worst {
        out.line(format_args!(
            "row {} ({}) to {}: {} attempts failed: {}",
            row.seq, row.id, row.destination, row.attempts, row.error
        ))?;
    }
    Ok(())
}
