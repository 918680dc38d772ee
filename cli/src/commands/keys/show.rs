//! `keys get`: prints the record of a key.

use std::time::Duration;

use onceward::store::{KeyRecord, KeyState, TraceContext};
use serde::Serialize;

use super::context::KeysContext;
use super::naming::{Known, Named, candidates, known};
use crate::args::KeyArgs;
use crate::exit::{Exit, Failure};
use crate::handlers::text::printable;
use crate::output::{Output, OutputError, millis};

/// The most bytes of an error that are printed.
const ERROR_LIMIT: usize = 2 * 1024;

/// A record as `--json` prints it. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct RecordJson {
    pub(super) hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    pub(super) state: &'static str,
    attempts: u32,
    lost: u32,
    generation: u32,
    fence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_left_ms: Option<u64>,
    first_age_ms: u64,
    last_age_ms: u64,
    expires_in_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
}

impl RecordJson {
    pub(super) fn new(record: &KeyRecord, from: Option<String>) -> Self {
        Self {
            hash: record.key.to_string(),
            from,
            state: record.state.as_str(),
            attempts: record.attempts,
            lost: record.lost,
            generation: record.generation,
            fence: record.fence,
            lease_left_ms: record.lease_left.map(millis),
            first_age_ms: millis(record.first_age),
            last_age_ms: millis(record.last_age),
            expires_in_ms: millis(record.expires_in),
            reason: record.reason.map(onceward::store::Reason::as_str),
            error: record.error.clone(),
            result_bytes: record.result_bytes,
            trace_id: record.trace.map(TraceContext::trace_id_hex),
            span_id: record.trace.map(TraceContext::span_id_hex),
        }
    }
}

/// A duration for people, in its two largest units: `6d 23h`, `59s`, `120ms`.
pub(in crate::commands) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let units =
        [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(0);
    let shown = units.iter().skip(first).take(2).filter(|(count, _)| *count > 0);
    shown.map(|(count, unit)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ")
}

/// Prints the record of each key that the values may mean. Exit code 1 if none is known.
pub(super) async fn get(
    context: &KeysContext<'_>,
    args: &KeyArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let candidates = candidates(context, args)?;
    let known = known(context, &candidates).await?;
    if known.is_empty() {
        unknown(&candidates, args.report.json, out)?;
        return Ok(Exit::Failed);
    }
    for (index, Known { named, record }) in known.iter().enumerate() {
        if args.report.json {
            out.json(&RecordJson::new(record, named.from.clone()))?;
        } else {
            if index > 0 {
                out.line("")?;
            }
            print(named, record, out)?;
        }
    }
    Ok(Exit::Done)
}

/// Prints the keys that were not found.
pub(super) fn unknown(candidates: &[Named], json: bool, out: &mut Output) -> Result<(), OutputError> {
    for named in candidates {
        if json {
            let from = named.from.as_deref();
            out.json(&serde_json::json!({"hash": named.key.to_string(), "from": from, "state": "unknown"}))?;
        } else {
            let from = named.from.as_ref().map(|from| format!(" (from {from})")).unwrap_or_default();
            out.line(format_args!("{}{from} is not known", named.key))?;
        }
    }
    Ok(())
}

fn print(named: &Named, record: &KeyRecord, out: &mut Output) -> Result<(), OutputError> {
    let lines = [
        ("hash", Some(record.key.to_string())),
        ("from", named.from.clone()),
        ("state", Some(record.state.as_str().to_owned())),
    ];
    let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    lines.chain(facts(record)).try_for_each(|(name, value)| out.line(format_args!("{name:<12} {value}")))
}

/// The names and values of a record that people read, but for its state.
pub(super) fn facts(record: &KeyRecord) -> impl Iterator<Item = (&'static str, String)> {
    let lease = match (record.state, record.lease_left) {
        (KeyState::Pending | KeyState::Terminal, Some(left)) if left > Duration::ZERO => Some(time(left)),
        (KeyState::Pending | KeyState::Terminal, _) => Some("expired".to_owned()),
        _ => None,
    };
    let facts = [
        ("lease left", lease),
        ("failures", Some(record.attempts.to_string())),
        ("lost claims", (record.lost > 0).then(|| record.lost.to_string())),
        ("generation", (record.generation > 0).then(|| record.generation.to_string())),
        ("fence", Some(record.fence.to_string())),
        ("first claim", Some(format!("{} ago", time(record.first_age)))),
        ("last write", Some(format!("{} ago", time(record.last_age)))),
        ("expires in", Some(time(record.expires_in))),
        ("reason", record.reason.map(|reason| reason.to_string())),
        ("error", record.error.as_ref().map(|error| printable(error.as_bytes(), ERROR_LIMIT))),
        ("result", record.result_bytes.map(|bytes| format!("{bytes} bytes"))),
        ("trace", record.trace.map(TraceContext::trace_id_hex)),
        ("span", record.trace.map(TraceContext::span_id_hex)),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_in_their_two_largest_units() {
        for (millis, shown) in [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (60_000, "1m"),
            (3_661_000, "1h 1m"),
            (3_601_000, "1h"),
            (604_799_000, "6d 23h"),
        ] {
            assert_eq!(time(Duration::from_millis(millis)), shown);
        }
    }
}
