//! `onceward status`: shows backlog, messages in flight, dead letters, and keys by state.

use std::time::Duration;

use onceward::Scope;
use onceward::store::{KeyState, KeyStats};
use serde_json::{Value, json};

use super::dlq::{LetterCount, LettersFound, letters};
use super::keys::{stats_as_json, time};
use crate::args::ReportArgs;
use crate::config::{self, Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::registry::{self, Backlog, DeadLetterStatus, OpenStore, Purpose};

/// The state of a pipeline.
struct Status {
    /// `None` if the source does not report it.
    backlog: Option<Backlog>,
    /// `None` without a dead-letter destination.
    dead_letters: Option<LettersFound>,
    keys: KeyStats,
}

/// Shows the state. It changes nothing, and may run beside the pipeline.
pub(super) async fn status(args: &ReportArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::failure::load(&args.config.file, env)?;
    let scope = config::scope(&config).map_err(|error| super::failure::failure(&error))?;
    let store = registry::open_store(&config, Purpose::Operate)
        .await
        .map_err(|error| super::failure::failure(&error))?;
    let status = read(&config, &scope, &store).await;
    store.close().await;
    let status = status?;
    if args.json {
        out.json(&as_json(&config, &status))?
    } else {
        print(&config, &status, out)?
    }
    Ok(Exit::Done)
}

async fn read(config: &Config, scope: &Scope, store: &OpenStore) -> Result<Status, Failure> {
    let failed = |error| super::failure::failure(&error);
    let keys = store.store.stats(scope).await.map_err(failed)?;
    let backlog = registry::backlog(config, scope, &*store.checkpoints).await.map_err(failed)?;
    let dead_letters = letters(config, scope, store, Duration::MAX).await.map_err(failed)?;
    Ok(Status { backlog, dead_letters, keys })
}

fn as_json(config: &Config, status: &Status) -> Value {
    json!({
        "scope": config.scope,
        "source": registry::describe_source(config),
        "store": registry::describe_store(config),
        "backlog": status.backlog.map(|backlog| json!({"bytes": backlog.bytes, "messages": backlog.messages})),
        "consumers": status.backlog.and_then(|backlog| backlog.consumers),
        "in_flight": status.keys.get(KeyState::Pending),
        "dead_letters": status.dead_letters.as_ref().map(|found| found.status.letters),
        "oldest_dead_letter_ms": oldest(status).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        "keys": stats_as_json(&status.keys),
    })
}

fn oldest(status: &Status) -> Option<Duration> {
    status.dead_letters.as_ref()?.oldest
}

fn print(config: &Config, status: &Status, out: &mut Output) -> Result<(), Failure> {
    let known = status.backlog.map(|backlog| backlog.to_string()).filter(|known| !known.is_empty());
    let backlog = known.unwrap_or_else(|| "unknown for this source".to_owned());
    let dead_letters = match status.dead_letters.as_ref().map(|found| &found.status) {
        None => "no destination".to_owned(),
        Some(DeadLetterStatus { place, letters: Some(letters) }) => {
            let oldest =
                oldest(status).map(|age| format!(", the oldest {} ago", time(age))).unwrap_or_default();
            match status.dead_letters.as_ref().map(|found| found.count) {
                Some(LetterCount::AtLeast) => format!("at least {letters} in {place}{oldest}"),
                Some(LetterCount::Total) => {
                    format!("{letters} in {place}, redriven and purged ones included")
                }
                _ => format!("{letters} in {place}{oldest}"),
            }
        }
        Some(DeadLetterStatus { place, letters: None }) => format!("not counted in {place}"),
    };
    let states = KeyState::ALL.into_iter().map(|state| (state.as_str(), status.keys.get(state)));
    let states: Vec<_> =
        states.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    let keys = match &states[..] {
        [] => "none".to_owned(),
        states => states.join(", "),
    };
    for (name, value) in [
        ("scope", config.scope.clone()),
        ("source", registry::describe_source(config)),
        ("store", registry::describe_store(config)),
        ("backlog", backlog),
        ("in flight", status.keys.get(KeyState::Pending).to_string()),
        ("dead letters", dead_letters),
        ("keys", keys),
    ] {
        out.line(format_args!("{name:<12} {value}"))?;
    }
    Ok(())
}
