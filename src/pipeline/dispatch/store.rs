//! Availability of the store, as a whole or in part, and when it may be called again: [`StoreWatch`].

use std::time::Duration;

use tokio::time::Instant;

use crate::pipeline::event::Asked;

/// Distinguishes an outage of the store from that of a part of it (a node of a cluster).
///
/// The store counts as down if a whole call failed and nothing shows that others are answered. While it is down only a
/// single call asks, after a growing pause; only keys that were never asked for are asked for at once, up to
/// [`FRESH_KEYS`] of them, since they may be those of a part that answers. In an outage of a part its keys wait and are
/// asked for again on their own; all others go on.
#[derive(Debug)]
pub(super) struct StoreWatch {
    failures: u32,
    retry_at: Option<Instant>,
    last_failure: Option<Instant>,
    partial_until: Option<Instant>,
    /// Different keys in a row that were not answered.
    fresh_failures: usize,
    look_for_others_at: Option<Instant>,
    warned_at: Option<Instant>,
}

/// After so many different keys in a row without an answer, the whole store is taken to be down.
const FRESH_KEYS: usize = 20;

/// An answer within this time of a failure shows that only a part is down.
const PARTIAL_FOR: Duration = Duration::from_secs(30);

/// While all is down, so often one more batch is taken in: its keys may be those of a part that answers.
const LOOK_FOR_OTHERS_EVERY: Duration = Duration::from_secs(90);

/// The change after an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    WentDown(String),
    CameUp,
    /// A part does not answer; reported at most once in ten seconds.
    Partial(String),
}

impl StoreWatch {
    pub(super) fn new() -> Self {
        Self {
            failures: 0,
            retry_at: None,
            last_failure: None,
            partial_until: None,
            fresh_failures: 0,
            look_for_others_at: None,
            warned_at: None,
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.retry_at.is_some()
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// True if keys that were never asked for are asked for at once.
    pub(super) fn asks_for_fresh(&self) -> bool {
        self.retry_at.is_none() || self.fresh_failures < FRESH_KEYS
    }

    /// True if more deliveries may be taken in.
    pub(super) fn lets_in(&self, now: Instant) -> bool {
        self.asks_for_fresh() || self.look_for_others_at.is_some_and(|at| at <= now)
    }

    /// When [`lets_in`](Self::lets_in) may change by itself.
    pub(super) fn lets_in_at(&self) -> Option<Instant> {
        self.look_for_others_at.filter(|_| !self.asks_for_fresh())
    }

    /// Deliveries were taken in.
    pub(super) fn arrived(&mut self, now: Instant) {
        if self.look_for_others_at.is_some_and(|at| at <= now) {
            self.look_for_others_at = Some(now + LOOK_FOR_OTHERS_EVERY);
        }
    }

    pub(super) fn note(
        &mut self,
        asked: Asked,
        now: Instant,
        pause: impl FnOnce(Duration, u32, Duration) -> Duration,
    ) -> Change {
        let was_down = self.is_down();
        let Asked { answered, fresh_failures, error } = asked;
        if answered > 0 {
            let failed_lately = error.is_some() || self.last_failure.is_some_and(|at| now - at < PARTIAL_FOR);
            self.partial_until = failed_lately.then(|| now + PARTIAL_FOR);
            (self.failures, self.fresh_failures) = (0, 0);
            (self.retry_at, self.look_for_others_at) = (None, None);
        }
        let Some(error) = error else {
            return if was_down { Change::CameUp } else { Change::None };
        };
        self.last_failure = Some(now);
        if answered == 0 {
            self.fresh_failures = self.fresh_failures.saturating_add(fresh_failures);
            let partial = self.partial_until.is_some_and(|until| now < until);
            if was_down || !partial || self.fresh_failures >= FRESH_KEYS {
                let wait = pause(Duration::from_millis(100), self.failures, Duration::from_secs(5));
                self.failures = self.failures.saturating_add(1);
                self.retry_at = Some(now + wait);
                self.look_for_others_at.get_or_insert(now + LOOK_FOR_OTHERS_EVERY);
                return if was_down { Change::None } else { Change::WentDown(error) };
            }
        }
        if was_down && answered > 0 {
            return Change::CameUp;
        }
        if self.warned_at.is_some_and(|at| now - at < Duration::from_secs(10)) {
            return Change::None;
        }
        self.warned_at = Some(now);
        Change::Partial(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(
        watch: &mut StoreWatch,
        now: Instant,
        answered: usize,
        fresh_failures: usize,
        failed: bool,
    ) -> Change {
        let error = failed.then(|| "gone".to_owned());
        watch.note(Asked { answered, fresh_failures, error }, now, |base, _, _| base)
    }

    #[test]
    fn a_mixed_answer_is_no_outage_and_a_whole_failure_is_one() {
        let now = Instant::now();
        let mut watch = StoreWatch::new();
        assert_eq!(ask(&mut watch, now, 3, 2, true), Change::Partial("gone".into()));
        assert!(!watch.is_down());
        let mut watch = StoreWatch::new();
        assert_eq!(ask(&mut watch, now, 0, 2, true), Change::WentDown("gone".into()));
        assert!(watch.is_down() && watch.asks_for_fresh(), "other keys may be answered");
        assert_eq!(ask(&mut watch, now, 0, 18, true), Change::None);
        assert!(!watch.asks_for_fresh() && !watch.lets_in(now));
        assert!(watch.lets_in(now + LOOK_FOR_OTHERS_EVERY));
        assert_eq!(ask(&mut watch, now, 1, 0, false), Change::CameUp);
    }

    #[test]
    fn in_an_outage_of_a_part_its_keys_alone_are_no_outage_of_the_whole() {
        let now = Instant::now();
        let mut watch = StoreWatch::new();
        ask(&mut watch, now, 3, 2, true);
        for _ in 0..100 {
            ask(&mut watch, now, 0, 0, true);
            ask(&mut watch, now, 0, 1, true);
            assert!(!watch.is_down());
            ask(&mut watch, now, 1, 0, false);
        }
        assert_eq!(ask(&mut watch, now, 0, FRESH_KEYS, true), Change::WentDown("gone".into()));
    }
}
