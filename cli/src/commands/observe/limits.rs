//! Limits of a report on a run in observe mode, in sentences: [`of`].

use std::time::Duration;

use crate::commands::keys::time;

/// The facts that limit a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubts {
    pub(super) lasted: Duration,
    pub(super) ttl: Duration,
    pub(super) is_in_memory: bool,
    pub(super) received: u64,
    /// Deliveries with a key that was not looked up.
    pub(super) unsighted: u64,
    pub(super) in_progress: u64,
    /// The size of the sample of keys, if it has not all of them.
    pub(super) sampled: Option<u64>,
}

/// So few deliveries show little.
const FEW: u64 = 1_000;

pub(super) fn of(doubts: &Doubts) -> Vec<String> {
    let lasted = time(doubts.lasted);
    let mut limits = vec![match doubts.is_in_memory {
        true => format!(
            "The store began empty: duplicates of messages from before the run count as new keys, and none is older than the run ({lasted})."
        ),
        false => format!(
            "Duplicates of messages from before the run ({lasted}) are recognised only if the store already had their keys; ages beyond the \
             run come from there."
        ),
    }];
    limits.push(
        "Duplicates that arrive after the run are not in it: the largest age is a lower bound, and keys that did not repeat may yet do so."
            .to_owned(),
    );
    limits.push(format!(
        "A duplicate that arrives later than ttl ({}) after the completion counts as a new key.",
        time(doubts.ttl)
    ));
    if doubts.received < FEW {
        limits.push(format!("Only {} deliveries: rare duplicates may be missing.", doubts.received));
    }
    if doubts.in_progress > 0 {
        limits.push(format!(
            "{} duplicates arrived while the first delivery was handled, and have no age.",
            doubts.in_progress
        ));
    }
    if doubts.unsighted > 0 {
        limits.push(format!(
            "{} deliveries are in no figure but the first: the store did not answer for them, or they were settled without it.",
            doubts.unsighted
        ));
    }
    if let Some(sampled) = doubts.sampled {
        limits.push(format!(
            "Shares of keys are those of a random sample of {sampled} keys; the number of keys is estimated from it."
        ));
    }
    limits.push("Percentiles of ages are at most 5 % too large.".to_owned());
    limits
}
