//! `keys list` and `keys stats`: list keys, and count them by state.

use onceward::store::{KeyState, KeyStats, ListQuery};
use serde_json::{Map, Value};

use super::context::KeysContext;
use super::naming::key_of_hash;
use super::show::{RecordJson, time};
use crate::args::{self, ListArgs, ReportArgs};
use crate::commands::failure;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Lists one page of records in the order of their hashes.
pub(super) async fn list(
    context: &KeysContext<'_>,
    args: &ListArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let query = ListQuery {
        state: args.state.map(|state| match state {
            args::KeyState::Pending => KeyState::Pending,
            args::KeyState::Completed => KeyState::Completed,
            args::KeyState::Failed => KeyState::Failed,
            args::KeyState::Terminal => KeyState::Terminal,
            args::KeyState::Dead => KeyState::Dead,
        }),
        after: args.after.as_ref().map(|hash| key_of_hash(hash, "--after")).transpose()?,
        limit: args.limit,
    };
    let listed = context.store.store.list(&context.scope, &query).await;
    let records = listed.map_err(|error| failure::failure(&error))?;
    if args.report.json {
        records.iter().try_for_each(|record| out.json(&RecordJson::new(record, None)))?;
        return Ok(Exit::Done);
    }
    out.line(format_args!(
        "{:<32} {:<9} {:>8} {:>11} {:>11}",
        "HASH", "STATE", "FAILURES", "LAST WRITE", "EXPIRES IN"
    ))?;
    for record in &records {
        out.line(format_args!(
            "{} {:<9} {:>8} {:>11} {:>11}",
            record.key,
            record.state.as_str(),
            record.attempts,
            time(record.last_age),
            time(record.expires_in)
        ))?;
    }
    if let Some(last) = records.last().filter(|_| records.len() == args.limit as usize) {
        out.line(format_args!("more keys may follow: --after {}", last.key))?;
    }
    Ok(Exit::Done)
}

/// Counts keys by state.
pub(super) async fn stats(
    context: &KeysContext<'_>,
    args: &ReportArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let stats = context.store.store.stats(&context.scope).await.map_err(|error| failure::failure(&error))?;
    if args.json {
        out.json(&as_json(&stats))?;
    } else {
        for state in KeyState::ALL {
            out.line(format_args!("{:<9} {:>12}", state.as_str(), stats.get(state)))?;
        }
        out.line(format_args!("{:<9} {:>12}", "total", stats.total()))?;
    }
    Ok(Exit::Done)
}

/// The count of each state, and `total`.
pub(in crate::commands) fn as_json(stats: &KeyStats) -> Map<String, Value> {
    let states = KeyState::ALL.into_iter().map(|state| (state.as_str().to_owned(), stats.get(state).into()));
    states.chain([("total".to_owned(), stats.total().into())]).collect()
}
