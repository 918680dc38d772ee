//! The report as lines of text: [`lines`], [`facts`].

use std::time::Duration;

use super::report::{ObserveReport, ShareEstimate};
use crate::commands::keys::time;
use crate::handlers::text::printable;

/// The longest line, in bytes.
const LONGEST: usize = 8 * 1024;

/// The report, one line each.
pub(super) fn lines(report: &ObserveReport) -> Vec<String> {
    let mut lines = vec![heading(report), String::new()];
    lines.extend(facts(report).into_iter().map(|(name, text)| format!("{name:<15}  {text}")));
    lines.push(String::new());
    lines.push(format!("recommended key  {}", key(report)));
    lines.extend(report.recommended.key.reasons.iter().map(|reason| format!("  - {reason}")));
    lines.push(format!("recommended ttl  {}", ttl(report)));
    lines.extend(report.recommended.ttl.reasons.iter().map(|reason| format!("  - {reason}")));
    lines.push(String::new());
    lines.push("not in these figures".to_owned());
    lines.extend(report.limits.iter().map(|limit| format!("  - {limit}")));
    // A name of a file or a queue may have control characters.
    lines.iter().map(|line| printable(line.as_bytes(), LONGEST)).collect()
}

pub(super) fn heading(report: &ObserveReport) -> String {
    let ended = match report.ended_by {
        "limit" => "until the time limit",
        "signal" => "until a signal",
        _ => "until the source was empty",
    };
    format!(
        "{} deliveries of scope {} in {}, {ended}: {}, {}",
        report.deliveries.received,
        report.scope,
        millis(report.observed_ms),
        report.source,
        report.store
    )
}

/// The figures, by name.
pub(super) fn facts(report: &ObserveReport) -> Vec<(&'static str, String)> {
    let duplicates = &report.duplicates;
    let rate = duplicates.rate.map(|rate| format!(", {}", share(rate))).unwrap_or_default();
    let mut facts = vec![
        (
            "duplicates",
            format!("{} of {} deliveries with a key{rate}", duplicates.count, report.deliveries.with_key),
        ),
        (
            "of these",
            format!(
                "{} of completed keys, {} while the first was handled, {} of dead keys",
                duplicates.of_completed, duplicates.while_in_progress, duplicates.of_dead
            ),
        ),
    ];
    facts.push((
        "age",
        match &report.duplicate_age_ms {
            Some(age) => format!("p50 {}, p99 {}, max {}", millis(age.p50), millis(age.p99), millis(age.max)),
            None => "no duplicate of a completed key".to_owned(),
        },
    ));
    let keys = &report.keys;
    let about = if keys.is_estimate { "about " } else { "" };
    let never =
        keys.never_repeated.map(|never| format!(", never repeated: {}", share(never))).unwrap_or_default();
    facts.push(("keys", format!("{about}{} different{never}", keys.distinct)));
    facts.push((
        "mismatches",
        format!("{} deliveries with a known key and another payload", report.mismatches),
    ));
    let from: Vec<_> =
        report.key_from.iter().map(|origin| format!("{} {}", origin.from, origin.keys)).collect();
    facts.push(("keys from", from.join(", ")));
    facts.push(("without a key", report.deliveries.without_key.to_string()));
    if let Some(payloads) = &report.payloads {
        let about = if payloads.is_estimate { "about " } else { "" };
        let several = percent(payloads.under_several_keys);
        facts.push((
            "payloads",
            format!("{about}{} different, under several keys: {several}", payloads.distinct),
        ));
    }
    facts
}

/// The recommended entries of `[key] from`.
pub(super) fn key(report: &ObserveReport) -> String {
    match &report.recommended.key.from {
        Some(from) => {
            let entries: Vec<_> = from.iter().map(ToString::to_string).collect();
            format!("from = [{}]", entries.join(", "))
        }
        None => "to be chosen by you".to_owned(),
    }
}

/// The recommended `ttl`.
pub(super) fn ttl(report: &ObserveReport) -> String {
    let advice = &report.recommended.ttl;
    match advice.ttl == advice.configured {
        true => format!("ttl = \"{}\", as configured", advice.ttl),
        false => format!("ttl = \"{}\" instead of \"{}\"", advice.ttl, advice.configured),
    }
}

fn share(share: ShareEstimate) -> String {
    format!("{} (95 %: {} to {})", percent(share.value), percent(share.from), percent(share.to))
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

pub(super) fn millis(ms: u64) -> String {
    time(Duration::from_millis(ms))
}
