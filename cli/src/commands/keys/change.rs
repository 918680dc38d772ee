//! `keys forget` and `keys complete`: change one key, with a confirmation, an entry in the audit trail and a line in the log.

use onceward::store::{AuditEntry, KeyRecord, KeyState};

use super::complete::{CompleteOutcome, complete as complete_keys};
use super::context::KeysContext;
use super::naming::{Known, Named, candidates, known};
use super::show::{time, unknown};
use crate::args::ChangeArgs;
use crate::commands::audit::{KeyAction, KeyChange, Operator, now};
use crate::commands::consent::consent;
use crate::commands::failure;
use crate::exit::{Exit, Failure};
use crate::logging::AUDIT;
use crate::output::Output;

/// The change that is confirmed.
const CHANGE: &str = "change the key";

/// Forgets a key: its message is handled again at the next delivery.
pub(super) async fn forget(
    context: &KeysContext<'_>,
    args: &ChangeArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let candidates = candidates(context, &args.key)?;
    let Some(found) = only_one(known(context, &candidates).await?)? else {
        unknown(&candidates, args.key.report.json, out)?;
        return Ok(Exit::Done);
    };
    let (key, before) = (found.named.key, found.record.state);
    let running = match before {
        KeyState::Pending if found.record.lease_left.is_some_and(|left| !left.is_zero()) => {
            " Its handler is running: a delivery in the meantime would be handled concurrently."
        }
        _ => "",
    };
    consent(
        args.yes,
        &format!(
            "Forget {key} ({})? Its message is handled again at the next delivery.{running}",
            before.as_str()
        ),
        CHANGE,
    )?;
    audit(context, args, KeyAction::Forget, &found.named, before.as_str()).await?;
    let forgotten = context.store.store.forget(&context.scope, &[key]).await;
    for answer in forgotten {
        answer.map_err(|error| failure::failure(&error))?;
    }
    log_change(context, KeyAction::Forget, &found.named, before.as_str());
    report(args, &found.named, "forgotten", out)
}

/// Marks a key completed: its message is not handled.
pub(super) async fn complete(
    context: &KeysContext<'_>,
    args: &ChangeArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let candidates = candidates(context, &args.key)?;
    let (named, before) = match only_one(known(context, &candidates).await?)? {
        Some(found) => {
            // Refused before the audit trail says that it was completed.
            if let Some(refused) = refused(&found.record) {
                return outcome(context, args, &found.named, found.record.state.as_str(), refused, out);
            }
            (found.named, found.record.state.as_str())
        }
        None => match &candidates[..] {
            [only] => (only.clone(), "unknown"),
            _ => return Err(ambiguous(candidates.iter(), "none of which is known")),
        },
    };
    if before != KeyState::Completed.as_str() {
        let question = format!("Complete {} ({before})? Its message will not be handled.", named.key);
        consent(args.yes, &question, CHANGE)?;
        audit(context, args, KeyAction::Complete, &named, before).await?;
    }
    let ttl = context.config.limits().ttl.get();
    match complete_keys(context, &[(named.key, ttl)]).await.pop() {
        Some(completed) => outcome(context, args, &named, before, completed, out),
        None => Err(Failure::new(Exit::Failed, format!("{} got no result from the store; retry", named.key))),
    }
}

/// Why a key with this record cannot be completed, if it cannot.
fn refused(record: &KeyRecord) -> Option<CompleteOutcome> {
    let left = record.lease_left.filter(|left| !left.is_zero());
    match (record.state, left) {
        (KeyState::Pending, Some(left)) => Some(CompleteOutcome::InProgress(left)),
        (KeyState::Terminal | KeyState::Dead, _) => Some(CompleteOutcome::Dead(record.reason)),
        _ => None,
    }
}

/// Reports what has become of the key.
fn outcome(
    context: &KeysContext<'_>,
    args: &ChangeArgs,
    named: &Named,
    before: &str,
    outcome: CompleteOutcome,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let failed = |what: String| Err(Failure::new(Exit::Failed, format!("{} {what}", named.key)));
    match outcome {
        CompleteOutcome::Completed => {
            log_change(context, KeyAction::Complete, named, before);
            report(args, named, "completed", out)
        }
        CompleteOutcome::Known => report(args, named, "completed already", out),
        CompleteOutcome::InProgress(left) => {
            let left = time(left);
            failed(format!("is claimed by a handler for at least {left}; retry when its run has ended"))
        }
        CompleteOutcome::Dead(reason) => {
            let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            failed(format!(
                "is dead-lettered{reason}, so its message is not handled; forget it first to complete it"
            ))
        }
        CompleteOutcome::Failed(error) => Err(failure::failure(&error)),
    }
}

/// The only known key, if any.
///
/// # Errors
/// Several keys are known.
fn only_one(mut known: Vec<Known>) -> Result<Option<Known>, Failure> {
    match known.len() {
        0 | 1 => Ok(known.pop()),
        _ => Err(ambiguous(known.iter().map(|known| &known.named), "all of which are known")),
    }
}

fn ambiguous<'a>(keys: impl Iterator<Item = &'a Named>, what: &str) -> Failure {
    let keys: Vec<_> = keys
        .map(|named| match &named.from {
            Some(from) => format!("{} from {from}", named.key),
            None => named.key.to_string(),
        })
        .collect();
    let sentence = format!(
        "the values match several keys, {what} ({}); choose one with --from, --typed or --hash",
        keys.join(", ")
    );
    Failure::new(Exit::Usage, sentence)
}

/// Records who is about to change the key, and why, if the store keeps an audit trail. It is recorded before the change, so that
/// none is without an entry.
async fn audit(
    context: &KeysContext<'_>,
    args: &ChangeArgs,
    action: KeyAction,
    named: &Named,
    before: &str,
) -> Result<(), Failure> {
    let Some(audit) = &context.store.audit else { return Ok(()) };
    let Operator { user, uid } = Operator::new(context.env);
    let key = named.key.to_string();
    let subject = format!("key {key}");
    let change =
        KeyChange { at: now(), action, key, before: before.to_owned(), user, uid, why: args.why.clone() };
    // Texts and numbers always serialize.
    let text = serde_json::to_string(&change).unwrap_or_default();
    let entry = AuditEntry { subject, settles: false, text };
    audit.append(&context.scope, &[entry]).await.map_err(|error| failure::failure(&error))
}

/// Logs who changed the key. No filter suppresses the line.
fn log_change(context: &KeysContext<'_>, action: KeyAction, named: &Named, before: &str) {
    let action = action.as_str();
    let user = Operator::new(context.env).user;
    tracing::info!(
        target: AUDIT,
        action,
        scope = %context.scope,
        key = %named.key,
        from = named.from.as_deref(),
        before,
        user,
        "key changed by the command"
    );
}

fn report(args: &ChangeArgs, named: &Named, what: &str, out: &mut Output) -> Result<Exit, Failure> {
    if args.key.report.json {
        out.json(&serde_json::json!({"hash": named.key.to_string(), "from": named.from, "result": what}))?;
    } else {
        out.line(format_args!("{} {what}", named.key))?;
    }
    Ok(Exit::Done)
}
