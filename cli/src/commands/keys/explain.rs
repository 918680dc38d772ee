//! `keys explain`: explains how the next delivery of a key will be handled, why, and what happened to the key so far.

use std::time::Duration;

use onceward::store::{KeyRecord, KeyState};

use super::context::KeysContext;
use super::history::{self, KeyHistory};
use super::naming::{Named, candidates, known};
use super::show::{RecordJson, facts, time};
use crate::args::KeyArgs;
use crate::commands::failure;
use crate::config::{Config, Mode, OnExhausted, OnInProgress, OnMismatch};
use crate::exit::{Exit, Failure};
use crate::output::{Output, OutputError};

/// Explains the record of each matching key, with its history. Exit code 1 if none is known.
pub(super) async fn explain(
    context: &KeysContext<'_>,
    args: &KeyArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let candidates = candidates(context, args)?;
    let known = known(context, &candidates).await?;
    let shown: Vec<(&Named, Option<&KeyRecord>)> = match known.is_empty() {
        true => candidates.iter().map(|named| (named, None)).collect(),
        false => known.iter().map(|known| (&known.named, Some(&known.record))).collect(),
    };
    let keys: Vec<_> = shown.iter().map(|(named, _)| named.key).collect();
    let history = KeyHistory::read(context, &keys).await.map_err(|error| failure::failure(&error))?;
    for (named, record) in shown {
        if args.report.json {
            print_json(context, named, record, &history, out)?;
        } else {
            print(context, named, record, &history, out)?;
        }
    }
    if known.is_empty() && !args.report.json {
        out.line("The next delivery is handled: the key was never claimed, or its record has expired.")?;
    }
    Ok(if known.is_empty() { Exit::Failed } else { Exit::Done })
}

fn print_json(
    context: &KeysContext<'_>,
    named: &Named,
    record: Option<&KeyRecord>,
    history: &KeyHistory,
    out: &mut Output,
) -> Result<(), OutputError> {
    let mut line = match record {
        None => serde_json::json!({"hash": named.key.to_string(), "from": named.from, "state": "unknown"}),
        Some(record) => {
            let mut line = serde_json::to_value(RecordJson::new(record, named.from.clone()))
                .unwrap_or_else(|_| serde_json::json!({}));
            line["words"] = words(&context.config, record).into();
            line
        }
    };
    line["history"] = match &history.denied {
        None => history.of(&named.key).cloned().collect(),
        Some(_) => serde_json::Value::Null,
    };
    if let Some(denied) = &history.denied {
        line["history_error"] = denied.as_str().into();
    }
    line["history_cut"] = history.is_cut.into();
    out.json(&line)
}

fn print(
    context: &KeysContext<'_>,
    named: &Named,
    record: Option<&KeyRecord>,
    history: &KeyHistory,
    out: &mut Output,
) -> Result<(), OutputError> {
    let from = named.from.as_ref().map(|from| format!(" (from {from})")).unwrap_or_default();
    match record {
        None => out.line(format_args!("{}{from} is not known", named.key))?,
        Some(record) => {
            let words = words(&context.config, record);
            out.line(format_args!("{}{from} is {}. {words}", named.key, record.state.as_str()))?;
            facts(record).try_for_each(|(name, value)| out.line(format_args!("  {name:<12} {value}")))?;
        }
    }
    for entry in history.of(&named.key) {
        out.line(format_args!("  {:<12} {}", "history", history::words(entry)))?;
    }
    if let Some(denied) = &history.denied {
        out.line(format_args!("  {:<12} cannot be read ({denied})", "history"))?;
    }
    if history.is_cut {
        out.line("  history      older entries of the audit trail were not searched")?;
    }
    Ok(())
}

fn words(config: &Config, record: &KeyRecord) -> String {
    let attempt = record.attempts.saturating_add(1);
    let mut words = match record.state {
        KeyState::Absent => format!(
            "It was released, or opened by a redrive: the next delivery is handled, as attempt {attempt} of generation {}.",
            record.generation
        ),
        KeyState::Pending => pending(config, record),
        KeyState::Failed => failed(config, record, attempt),
        KeyState::Terminal => format!(
            "It failed permanently{}, and its dead letter is being published. A delivery now waits; once the lease has \
             expired, the next one repeats the dead letter, never the handler.",
            reason(record)
        ),
        KeyState::Completed => completed(config, record),
        KeyState::Dead => format!(
            "Its dead letter was published {} ago{}: further deliveries are acked and counted. Only a redrive of that \
             letter, as generation {}, is handled again.",
            time(record.last_age),
            reason(record),
            record.generation.saturating_add(1)
        ),
    };
    if config.mode == Mode::Observe {
        words += " The mode is \"observe\", so every delivery is handled anyway.";
    }
    words
}

fn pending(config: &Config, record: &KeyRecord) -> String {
    match record.lease_left {
        Some(left) if left > Duration::ZERO => {
            let meanwhile = match config.policy.on_in_progress {
                OnInProgress::Hold => "is held until the run has ended",
                OnInProgress::Park => "is returned to a broker that can delay it, and held otherwise",
            };
            format!(
                "Its handler is running or about to run, under a lease with {} left, which is renewed while its process lives. A \
                 delivery now {meanwhile}; it is never acked.",
                time(left)
            )
        }
        _ => "Its lease has expired: its process died or lost the store. The next delivery claims the key with a larger fence and \
              is handled, although the effect of the first run may have happened."
            .to_owned(),
    }
}

fn failed(config: &Config, record: &KeyRecord, attempt: u32) -> String {
    let most = config.retry.max_attempts;
    match config.policy.on_exhausted {
        _ if record.attempts < most => format!(
            "Its last run failed {} ago; the next delivery is handled, as attempt {attempt} of {most}.",
            time(record.last_age)
        ),
        OnExhausted::Park => format!(
            "All {most} attempts failed; it stays in the source and is retried, as attempt {attempt}, because \
             policy.on_exhausted is \"park\"."
        ),
        OnExhausted::DeadLetter => {
            format!("All {most} attempts failed: the next delivery is dead-lettered, not handled.")
        }
    }
}

fn completed(config: &Config, record: &KeyRecord) -> String {
    let other = match config.policy.on_mismatch {
        OnMismatch::DeadLetter => "is dead-lettered",
        OnMismatch::Ack => "is acked as well, and counted",
        OnMismatch::Process => "is handled without deduplication",
    };
    format!(
        "Its effect happened {} ago: further deliveries are acked as duplicates for another {}, then handled again. A \
         delivery with another payload {other}.",
        time(record.last_age),
        time(record.expires_in)
    )
}

fn reason(record: &KeyRecord) -> String {
    record.reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
}
