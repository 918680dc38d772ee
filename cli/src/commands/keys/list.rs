//! `keys list` and `keys stats`.

use onceward::store::{KeyState, KeyStats, ListQuery};
use serde_json::{Map, Value};

use super::Bench;
use super::naming::of_hash;
use super::show::{Record, time};
use crate::args::{self, ListArgs, ReportArgs};
use crate::commands;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Lists records in the order of their hashes: one page, never more than asked for.
pub(super) async fn list(bench: &Bench<'_>, args: &ListArgs, out: &mut Output) -> Result<Exit, Failure> {
    let query = ListQuery {
        state: args.state.map(|state| match state {
            args::KeyState::Pending => KeyState::Pending,
            args::KeyState::Completed => KeyState::Completed,
            args::KeyState::Failed => KeyState::Failed,
            args::KeyState::Terminal => KeyState::Terminal,
            args::KeyState::Dead => KeyState::Dead,
        }),
        after: args.after.as_ref().map(|hash| of_hash(hash, "--after")).transpose()?,
        limit: args.limit,
    };
    let listed = bench.store.store.list(&bench.scope, &query).await;
    let records = listed.map_err(|error| commands::failure(&error))?;
    if args.report.json {
        records.iter().try_for_each(|record| out.json(&Record::new(record, None)))?;
        return Ok(Exit::Done);
    }
    out.line(format_args!(
        "{:<32} {:<9} {:>8} {:>20} {:>20}",
        "HASH", "STATE", "ATTEMPTS", "LAST WRITE", "EXPIRES IN"
    ))?;
    for record in &records {
        out.line(format_args!(
            "{} {:<9} {:>8} {:>20} {:>20}",
            record.key,
            record.state.as_str(),
            record.attempts,
            time(record.last_age),
            time(record.expires_in)
        ))?;
    }
    if let Some(last) = records.last().filter(|_| records.len() == args.limit as usize) {
        out.line(format_args!("There may be more: --after {}", last.key))?;
    }
    Ok(Exit::Done)
}

/// Counts keys by state.
pub(super) async fn stats(bench: &Bench<'_>, args: &ReportArgs, out: &mut Output) -> Result<Exit, Failure> {
    let stats = bench.store.store.stats(&bench.scope).await.map_err(|error| commands::failure(&error))?;
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

/// One number for each state, and `total`.
pub(in crate::commands) fn as_json(stats: &KeyStats) -> Map<String, Value> {
    let states = KeyState::ALL.into_iter().map(|state| (state.as_str().to_owned(), stats.get(state).into()));
    states.chain([("total".to_owned(), stats.total().into())]).collect()
}
