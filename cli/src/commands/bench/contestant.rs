//! The ways in which the messages of a run are consumed: [`Contestant`].

use std::time::Duration;

use onceward_plugin::StoreLimits;

use crate::config::{
    Config, Handler, HumanDuration, Mode, OnCompleted, OnExhausted, OnMismatch, OnMissingKey,
};

/// A key of a measurement is known for so long at most, if it cannot be forgotten at the end.
const TTL: HumanDuration = HumanDuration::from_secs(3_600);

/// The lease, and the TTL, of a claim of [`Contestant::OneByOne`], which never completes one.
pub(super) const CLAIM: Duration = Duration::from_secs(3_600);

/// A way to consume the messages of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// Receives and acknowledges.
    Raw,
    /// Claims one message after the other.
    OneByOne,
    /// The pipeline with the settings of the file.
    Configured,
    /// The pipeline with larger batches and more concurrency.
    Tuned,
}

impl Contestant {
    pub(super) const ALL: [Self; 4] = [Self::Raw, Self::OneByOne, Self::Configured, Self::Tuned];

    /// Its name in the output.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::OneByOne => "one-by-one",
            Self::Configured => "onceward",
            Self::Tuned => "tuned",
        }
    }

    /// How many of `messages` a run of it has: a loop that claims singly would take most of the time.
    pub(super) fn share(self, messages: u64) -> u64 {
        match self {
            Self::OneByOne => messages.div_ceil(10),
            _ => messages,
        }
    }

    /// True if copies are suppressed.
    pub(super) fn deduplicates(self) -> bool {
        self != Self::Raw
    }
}

/// The file's settings as they are measured: nothing is dead-lettered or answered, keys are not known for long, and no limit holds runs back, which
/// would be measured instead.
pub(super) fn configured(config: &Config) -> Config {
    let mut config = config.clone();
    (config.mode, config.dead_letter) = (Mode::Enforce, None);
    config.policy.on_exhausted = OnExhausted::Park;
    // Its messages ask for no reply.
    config.policy.on_completed = OnCompleted::Ack;
    (config.pipeline.rate_limit, config.pipeline.adaptive_concurrency) = (None, false);
    // What happens in neither case: each message has a key, and copies are equal.
    (config.policy.on_missing_key, config.policy.on_mismatch) = (OnMissingKey::Reject, OnMismatch::Ack);
    if let Handler::Sql(sql) = &mut config.handler {
        sql.batch = 1;
    }
    let limits = config.limits();
    let ttl = HumanDuration::new(limits.ttl.get().min(TTL.get().max(limits.lease.get())));
    config.store.plugin_mut().set_limits(StoreLimits { ttl, ..limits });
    config
}

/// After so long no key of a measurement is known, if it cannot be forgotten at the end: a record stays for its TTL behind its lease.
pub(super) fn keys_expire_within(configured: &Config) -> Duration {
    let limits = configured.limits();
    (CLAIM + CLAIM).max(limits.lease.get() + limits.ttl.get())
}

/// The settings of [`Contestant::Tuned`], for the same order and the same guarantee.
pub(super) fn tuned(configured: &Config) -> Config {
    let mut config = configured.clone();
    let pipeline = &mut config.pipeline;
    pipeline.concurrency = pipeline.concurrency.max(256);
    pipeline.max_in_flight = pipeline.max_in_flight.max(8_192).max(pipeline.concurrency);
    pipeline.max_batch = pipeline.max_batch.max(512);
    pipeline.lane_batch = pipeline.lane_batch.max(256);
    if let Handler::Worker(worker) = &mut config.handler {
        // As many messages run as its processes take.
        worker.processes = worker.processes.max(256);
    }
    config
}

/// The settings of `tuned` that a file can have, in a line.
pub(super) fn settings(tuned: &Config) -> [(&'static str, u32); 4] {
    let pipeline = &tuned.pipeline;
    [
        ("concurrency", pipeline.concurrency),
        ("max_in_flight", pipeline.max_in_flight),
        ("max_batch", pipeline.max_batch),
        ("lane_batch", pipeline.lane_batch),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_expire_after_the_longest_lease_and_ttl() {
        let expire = |lease: &str| {
            let text = format!(
                "scope = 'a'\n[source.file]\npath = 'x'\n[store.memory]\nlease = '{lease}'\n[handler.stdout]\n\
                 [dead_letter]\nto = 'd'\n[key]\nfrom = ['json:/id']\n"
            );
            keys_expire_within(&configured(&Config::parse(&text, &|_| None).unwrap())).as_secs()
        };
        assert_eq!((expire("30s"), expire("2h")), (2 * 3_600, 4 * 3_600));
    }

    #[test]
    fn no_limit_of_the_file_holds_a_measured_run_back() {
        let text = "scope = 'a'\n[source.file]\npath = 'x'\n[store.memory]\n[handler.stdout]\n[dead_letter]\nto = 'd'\n\
                    [key]\nfrom = ['json:/id']\n[pipeline]\nrate_limit = 2.5\nadaptive_concurrency = true\n";
        let configured = configured(&Config::parse(text, &|_| None).unwrap());
        for config in [tuned(&configured), configured] {
            assert_eq!((config.pipeline.rate_limit, config.pipeline.adaptive_concurrency), (None, false));
        }
    }
}
