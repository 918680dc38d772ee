//! The recommended `[key] from`, from the keys that a run has found: [`recommend`].

use serde::Serialize;

/// One entry of `[key] from`, and how many keys it gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct KeyOrigin {
    /// As in the configuration: `"json:/id"`, or a list for a composite.
    pub(super) from: serde_json::Value,
    pub(super) keys: u64,
    /// It is the position in the source alone, which no second publish of a message shares.
    #[serde(skip)]
    pub(super) is_position: bool,
}

/// The facts that a key is judged by.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyFacts {
    pub(super) origins: Vec<KeyOrigin>,
    /// Deliveries without a usable key.
    pub(super) without_key: u64,
    pub(super) duplicates: u64,
    pub(super) mismatches: u64,
    /// The share of payloads that came under more than one key; `None` if payloads were not compared as a whole.
    pub(super) payloads_under_several: Option<f64>,
}

/// What to do with `[key] from`, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct KeyAdvice {
    /// The entries to use; `None` if that depends on the meaning of the messages.
    pub(super) from: Option<Vec<serde_json::Value>>,
    pub(super) reasons: Vec<String>,
}

/// Below this share, equal payloads under different keys are no sign of a key that is fresh for each delivery.
const FEW: f64 = 0.01;

pub(super) fn recommend(facts: &KeyFacts) -> KeyAdvice {
    let total: u64 = facts.origins.iter().map(|origin| origin.keys).sum();
    if total == 0 {
        let reason = match facts.without_key {
            0 => "no message was received, so that nothing is known about its key",
            _ => {
                "no message had a usable key: name a header or field that the producer sets once for each message"
            }
        };
        return KeyAdvice { from: None, reasons: vec![reason.to_owned()] };
    }
    let (used, unused): (Vec<_>, Vec<_>) = facts.origins.iter().partition(|origin| origin.keys > 0);
    let mut problems: Vec<String> =
        [mismatches(facts), positions(&used, total), fresh(facts), several(&used), missing(facts, total)]
            .into_iter()
            .flatten()
            .collect();
    if !problems.is_empty() {
        return KeyAdvice { from: None, reasons: problems };
    }
    problems.extend(unused.iter().map(|origin| format!("{} gave no key and can be left out", origin.from)));
    problems.push(match facts.duplicates {
        0 => "it gave every key without a mismatch; no duplicate came, so that nothing shows whether it recognises them".to_owned(),
        found => format!("it gave every key, recognised {found} duplicates, and no two payloads shared a key"),
    });
    let from = used.into_iter().map(|origin| origin.from.clone()).collect();
    KeyAdvice { from: Some(from), reasons: problems }
}

fn mismatches(facts: &KeyFacts) -> Option<String> {
    (facts.mismatches > 0).then(|| {
        format!(
            "{} deliveries had a known key and another payload: if different messages share the key, add a part to it, such as \
             [\"json:/customer\", \"json:/id\"]; if only a timestamp or the like differs, limit key.fingerprint to the fields that count",
            facts.mismatches
        )
    })
}

fn positions(used: &[&KeyOrigin], total: u64) -> Option<String> {
    let keys: u64 = used.iter().filter(|origin| origin.is_position).map(|origin| origin.keys).sum();
    (keys > 0).then(|| {
        format!(
            "{keys} of {total} keys are positions in the source: they recognise redeliveries by the broker, and no message that its \
             producer publishes twice; have producers set the header idempotency-key, or name a field of the payload"
        )
    })
}

fn fresh(facts: &KeyFacts) -> Option<String> {
    let share = facts.payloads_under_several.filter(|share| *share >= FEW)?;
    Some(format!(
        "{:.1} % of the payloads came under more than one key: if these are copies of one message, the key is new for each and \
         recognises none of them, so name a field of the payload; if they are different messages that are equal, the key is right",
        share * 100.0
    ))
}

fn several(used: &[&KeyOrigin]) -> Option<String> {
    (used.len() > 1).then(|| {
        let names: Vec<_> = used.iter().map(|origin| origin.from.to_string()).collect();
        format!(
            "keys came from {}: copies of one message that differ in which of them they have get different keys; prefer one that \
             every message has",
            names.join(" and ")
        )
    })
}

fn missing(facts: &KeyFacts, total: u64) -> Option<String> {
    (facts.without_key > 0).then(|| {
        format!(
            "{} of {} messages had no usable key; `onceward run` logs which entries they lack",
            facts.without_key,
            facts.without_key + total
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(from: &str, keys: u64) -> KeyOrigin {
        KeyOrigin { from: from.into(), keys, is_position: from == "position" }
    }

    fn good() -> KeyFacts {
        KeyFacts { origins: vec![origin("json:/id", 100)], duplicates: 3, ..KeyFacts::default() }
    }

    #[test]
    fn a_key_without_a_problem_is_kept_without_the_entries_that_gave_none() {
        let mut facts = good();
        facts.origins.insert(0, origin("message-id", 0));
        let advice = recommend(&facts);
        assert_eq!(advice.from, Some(vec!["json:/id".into()]));
        assert!(advice.reasons[0].contains("\"message-id\" gave no key"), "{advice:?}");
        assert!(advice.reasons[1].contains("recognised 3 duplicates"), "{advice:?}");
        let unknown = recommend(&KeyFacts { duplicates: 0, ..good() });
        assert!(unknown.reasons[0].contains("nothing shows whether"), "{unknown:?}");
    }

    #[test]
    fn each_problem_is_named_and_no_key_is_recommended_that_only_people_can_choose() {
        let with = |change: fn(&mut KeyFacts)| {
            let mut facts = good();
            change(&mut facts);
            facts
        };
        for (facts, said) in [
            (with(|facts| facts.mismatches = 2), "2 deliveries had a known key"),
            (with(|facts| facts.origins.push(origin("position", 7))), "7 of 107 keys are positions"),
            (with(|facts| facts.payloads_under_several = Some(0.25)), "25.0 % of the payloads"),
            (with(|facts| facts.origins.push(origin("message-id", 1))), "\"json:/id\" and \"message-id\""),
            (with(|facts| facts.without_key = 4), "4 of 104 messages had no usable key"),
            (with(|facts| facts.origins[0].keys = 0), "no message was received"),
        ] {
            let advice = recommend(&facts);
            assert_eq!(advice.from, None, "{said}");
            assert!(advice.reasons.iter().any(|reason| reason.contains(said)), "{said}: {advice:?}");
        }
        assert!(recommend(&with(|facts| facts.payloads_under_several = Some(0.001))).from.is_some());
    }
}
