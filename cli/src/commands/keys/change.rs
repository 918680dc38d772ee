//! `keys forget` and `keys complete`: one key, with consent, and with a line in the log that says who.

use std::io::{self, BufRead, IsTerminal, Write};

use onceward::store::KeyState;

use super::Bench;
use super::complete::{Outcome, complete as complete_keys};
use super::naming::{Known, Named, candidates, known};
use super::show::{time, unknown};
use crate::args::ChangeArgs;
use crate::commands;
use crate::exit::{Exit, Failure};
use crate::logging::AUDIT;
use crate::output::Output;

/// Forgets a key, so that its message is handled again when it comes.
pub(super) async fn forget(bench: &Bench<'_>, args: &ChangeArgs, out: &mut Output) -> Result<Exit, Failure> {
    let candidates = candidates(bench, &args.key)?;
    let Some(found) = the_one(known(bench, &candidates).await?)? else {
        unknown(&candidates, args.key.report.json, out)?;
        return Ok(Exit::Done);
    };
    let (key, before) = (found.named.key, found.record.state);
    let running = match before {
        KeyState::Pending if found.record.lease_left.is_some_and(|left| !left.is_zero()) => {
            " Its handler is running: a delivery that comes meanwhile would be handled at the same time."
        }
        _ => "",
    };
    consent(
        args,
        &format!("Forget {key} ({})? Its message is handled again when it comes.{running}", before.as_str()),
    )?;
    let forgotten = bench.store.store.forget(&bench.scope, &[key]).await;
    for answer in forgotten {
        answer.map_err(|error| commands::failure(&error))?;
    }
    audit(bench, "forget", &found.named, before.as_str());
    said(args, &found.named, "forgotten", out)
}

/// Marks a key completed, so that its message is not handled.
pub(super) async fn complete(
    bench: &Bench<'_>,
    args: &ChangeArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let candidates = candidates(bench, &args.key)?;
    let (named, before) = match the_one(known(bench, &candidates).await?)? {
        Some(found) => (found.named, found.record.state.as_str()),
        None => match &candidates[..] {
            [only] => (only.clone(), "unknown"),
            _ => return Err(which(candidates.iter(), "none of which is known")),
        },
    };
    if before != KeyState::Completed.as_str() {
        consent(args, &format!("Complete {} ({before})? Its message is not handled any more.", named.key))?;
    }
    let ttl = bench.config.limits().ttl.get();
    let failed = |what: String| Err(Failure::new(Exit::Failed, format!("{} {what}", named.key)));
    match complete_keys(bench, &[(named.key, ttl)]).await.pop() {
        Some(Outcome::Completed) => {
            audit(bench, "complete", &named, before);
            said(args, &named, "completed", out)
        }
        Some(Outcome::Known) => said(args, &named, "completed already", out),
        Some(Outcome::InProgress(left)) => {
            let left = time(left);
            failed(format!("is claimed by a handler, for {left} at least; try again when its run has ended"))
        }
        Some(Outcome::Dead(reason)) => {
            let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            failed(format!(
                "is dead-lettered{reason}, so its message is not handled anyway; forget it first to change that"
            ))
        }
        Some(Outcome::Failed(error)) => Err(commands::failure(&error)),
        None => failed("was not answered for by the store; try again".to_owned()),
    }
}

/// The only known key, none, or the demand to say which.
fn the_one(mut known: Vec<Known>) -> Result<Option<Known>, Failure> {
    match known.len() {
        0 | 1 => Ok(known.pop()),
        _ => Err(which(known.iter().map(|known| &known.named), "all of which are known")),
    }
}

fn which<'a>(keys: impl Iterator<Item = &'a Named>, what: &str) -> Failure {
    let keys: Vec<_> = keys
        .map(|named| match &named.from {
            Some(from) => format!("{} from {from}", named.key),
            None => named.key.to_string(),
        })
        .collect();
    let sentence = format!(
        "this may be several keys, {what} ({}); say which with --from, with --typed, or with --hash",
        keys.join(", ")
    );
    Failure::new(Exit::Usage, sentence)
}

/// Asks on a terminal; anywhere else `--yes` must have been given.
fn consent(args: &ChangeArgs, question: &str) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let sentence = "there is no terminal to ask on; give --yes to change the key without being asked";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    // A terminal that cannot be written to gives no answer either.
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was changed")),
    }
}

/// One line for whoever asks later who did it. It is logged whatever the filter says.
fn audit(bench: &Bench<'_>, action: &'static str, named: &Named, before: &str) {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| (bench.env)(name));
    tracing::info!(
        target: AUDIT,
        action,
        scope = %bench.scope,
        key = %named.key,
        from = named.from.as_deref(),
        before,
        user,
        "a key was changed by hand"
    );
}

fn said(args: &ChangeArgs, named: &Named, what: &str, out: &mut Output) -> Result<Exit, Failure> {
    if args.key.report.json {
        out.json(&serde_json::json!({"hash": named.key.to_string(), "from": named.from, "result": what}))?;
    } else {
        out.line(format_args!("{} {what}", named.key))?;
    }
    Ok(Exit::Done)
}
