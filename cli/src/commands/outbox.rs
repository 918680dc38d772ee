//! `onceward outbox relay` and `onceward outbox status`: publishes the outbox, and shows its backlog.

use std::cell::Cell;
use std::sync::Arc;

use onceward::outbox::{OutboxStatus, RelayCounts};
use onceward::store::AdviceLevel;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::keys::time;
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

/// Publishes until the first signal, and finishes the batch in flight. The second signal ends the program at once.
async fn relay(args: &FileArgs, env: Lookup<'_>) -> Result<Exit, Failure> {
    let config = super::failure::load(&args.file, env)?;
    telemetry::start_export(&config, env)?;
    logging::start(config.telemetry.log, env)?;
    for advice in super::readable::secrets(&config) {
        tracing::warn!(code = advice.code(), "{advice}");
    }
    let signals = Signals::catch()?;
    let shutdown = CancellationToken::new();
    let watched = Watched::relay(&config.scope, shutdown.clone());
    telemetry::expose(&config, &watched, None).await?;
    let whole_run = publish(&config, &watched, &shutdown);
    match signals
        .drain(&shutdown, whole_run, || tracing::info!("draining: finishing the batch in flight"))
        .await
    {
        Ok(ended) => ended.map(|()| Exit::Done),
        Err(stopped) => {
            tracing::warn!("drain aborted by a second signal; the batch in flight may be published again");
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
    let Some((store, advice, relay)) = opened.await.map_err(|error| super::failure::failure(&error))? else {
        return Ok(());
    };
    for finding in advice.iter().filter(|finding| finding.level != AdviceLevel::Ok) {
        tracing::warn!(code = finding.code, "{}", finding.text);
    }
    let ReadyRelay { counts, running } = relay;
    watched.relay_started(Arc::clone(&counts));
    let (from, to) = (registry::describe_store(config), registry::describe_outbox_target(config));
    tracing::info!(from, to, "relay started");
    let ended = running.await;
    log_counts(&counts);
    store.close().await;
    ended.map_err(|error| super::failure::failure(&error))
}

fn log_counts(counts: &RelayCounts) {
    let (published, failed, cleaned) = (counts.published(), counts.failed(), counts.cleaned());
    tracing::info!("published={published} failed={failed} cleaned={cleaned}");
}

/// Shows the backlog. It changes nothing, and may run beside relays.
async fn status(args: &ReportArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::failure::load(&args.config.file, env)?;
    let failed = |error| super::failure::failure(&error);
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
        Some(age) => format!(", the oldest for {}", time(age)),
        None => String::new(),
    };
    for (name, value) in [
        ("store", registry::describe_store(config)),
        ("to", registry::describe_outbox_target(config)),
        ("waiting", format!("{}{oldest}", status.waiting)),
        ("failing", format!("{}, blocking {} rows", status.failing, status.held)),
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
