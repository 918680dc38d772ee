//! `onceward status`: backlog, messages in flight, dead letters, and keys by state.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use onceward::Scope;
use onceward::store::{KeyState, KeyStats};
use onceward_file::Backlog;
use serde_json::{Value, json};

use super::keys::stats_as_json;
use crate::args::ReportArgs;
use crate::config::{Config, Lookup, Source};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::registry::{self, OpenStore, Purpose};

/// What was found.
struct Status {
    /// `None` where the source cannot tell.
    backlog: Option<Backlog>,
    /// `None` without a place for dead letters, or where it cannot be looked into from here.
    dead_letters: Option<(PathBuf, u64)>,
    keys: KeyStats,
}

/// Reports, without changing anything; it may be called while the pipeline runs.
pub(super) async fn status(args: &ReportArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::load(&args.config.file, env)?;
    let scope = registry::scope(&config).map_err(|error| super::failure(&error))?;
    let store =
        registry::open_store(&config, Purpose::Operate).await.map_err(|error| super::failure(&error))?;
    let status = look(&config, &scope, &store).await;
    store.close().await;
    let status = status?;
    if args.json {
        out.json(&as_json(&config, &status))?
    } else {
        print(&config, &status, out)?
    }
    Ok(Exit::Done)
}

async fn look(config: &Config, scope: &Scope, store: &OpenStore) -> Result<Status, Failure> {
    let keys = store.store.stats(scope).await.map_err(|error| super::failure(&error))?;
    let Source::File(source) = &config.source else {
        return Ok(Status { backlog: None, dead_letters: None, keys });
    };
    let source = registry::file_config(config, source);
    let backlog = onceward_file::backlog(&source, scope, &*store.checkpoints).await;
    let backlog = backlog.map_err(|error| super::failure(&error))?;
    let dead_letters = match &config.dead_letter {
        None => None,
        Some(dead_letter) => {
            let path = config.resolve(dead_letter.to.expose().as_ref());
            let letters = letters(&path).map_err(|error| {
                let fix = "make the file readable for this user";
                Failure::new(Exit::Failed, format!("{}: cannot be read ({error}); {fix}", path.display()))
            })?;
            Some((path, letters))
        }
    };
    Ok(Status { backlog, dead_letters, keys })
}

/// The letters in a file; none if it is not there.
fn letters(path: &Path) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::with_capacity(256 * 1024, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut letters = 0;
    loop {
        let buffer = file.fill_buf()?;
        if buffer.is_empty() {
            return Ok(letters);
        }
        letters += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let read = buffer.len();
        file.consume(read);
    }
}

fn as_json(config: &Config, status: &Status) -> Value {
    json!({
        "scope": config.scope,
        "source": registry::describe_source(config),
        "store": registry::describe_store(config),
        "backlog": status.backlog.map(|backlog| json!({"bytes": backlog.bytes, "messages": backlog.messages})),
        "in_flight": status.keys.get(KeyState::Pending),
        "dead_letters": status.dead_letters.as_ref().map(|(_, letters)| letters),
        "keys": stats_as_json(&status.keys),
    })
}

fn print(config: &Config, status: &Status, out: &mut Output) -> Result<(), Failure> {
    let backlog = match status.backlog {
        None => "not known for this source".to_owned(),
        Some(Backlog { bytes, messages: Some(messages) }) => format!("{messages} messages, {bytes} bytes"),
        Some(Backlog { bytes, messages: None }) => format!("{bytes} bytes"),
    };
    let dead_letters = match &status.dead_letters {
        None => "not known for this source".to_owned(),
        Some((path, letters)) => format!("{letters} in {}", path.display()),
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
