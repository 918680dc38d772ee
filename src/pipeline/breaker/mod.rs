//! The circuit breaker of the handler, as a pure state machine: whether runs may start, and when one may probe.

#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::{HashSet, HashSetExt};
use tokio::time::Instant;

use super::config::BreakerConfig;
use crate::delivery::Tag;
use crate::key::Key;
use crate::telemetry::HandlerOutage;

/// The message that a run belongs to: failures of one message are one failure to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RunId {
    Key(Key),
    /// Of a run without a key.
    Delivery(Tag),
}

/// The end of a run, as far as it shows something about the handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    Succeeded,
    /// The handler gave a verdict about the message: retry or permanent.
    Failed(String),
    /// A dependency of the handler is unavailable; the reason, and the least time to wait, if that is known.
    Unavailable(String, Option<Duration>),
    /// There was no run, or its outcome is not known.
    Nothing,
}

/// The change after the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened,
    Closed,
}

/// Opens when two different messages in a row find the handler unavailable, or when `failing_keys` different messages
/// fail in a row. "In a row" means that no run succeeded in between, so that one message can never open it.
///
/// While it is open, single runs probe one by one, after pauses that grow from 100 ms to 5 s. It closes when any run
/// succeeds. If it was opened by unavailability it closes as well when a probe ends with a verdict about its message:
/// the handler can judge messages again. If it was opened by failures, a probe that fails uses an attempt as any run
/// does, and the next probe takes another message: a source that holds nothing but bad messages is still worked off,
/// slowly.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: BreakerConfig,
    failing: HashSet<RunId>,
    unavailable: HashSet<RunId>,
    /// Runs that found the handler unavailable, since one that did not.
    streak: u32,
    last_reason: String,
    /// How often it has opened.
    openings: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    by_failures: bool,
    since: Instant,
    probes: u32,
    probe_at: Instant,
    probing: bool,
}

/// The first pause before a probe, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause that one answer can ask for: it may concern its own message or tenant only. That message waits for
/// as long as the answer asks.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Messages that must find the handler unavailable.
const UNAVAILABLE_TO: usize = 2;

/// After so many runs in a row that found it unavailable, of whichever message, the handler is reported as down.
const REPORTED_AFTER: u32 = 3;

impl Breaker {
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            failing: HashSet::new(),
            unavailable: HashSet::new(),
            streak: 0,
            last_reason: String::new(),
            openings: 0,
            open: None,
        }
    }

    /// Notes the end of a run; `probe` is what [`probe_started`](Self::probe_started) gave it. `pause` makes a pause of the
    /// tries before and the limits.
    pub(crate) fn note(
        &mut self,
        id: RunId,
        end: RunEnd,
        probe: Option<u64>,
        now: Instant,
        pause: impl FnOnce(Duration, u32, Duration) -> Duration,
    ) -> Option<Change> {
        if !self.config.enabled {
            return None;
        }
        // The probe of an earlier opening shows no more than any run that started before this one.
        let is_probe = probe.is_some() && probe == self.opening();
        match end {
            RunEnd::Nothing => {
                // The probe shows nothing; another message may try at once.
                if let Some(open) = self.open.as_mut().filter(|_| is_probe) {
                    open.probing = false;
                    open.probe_at = now;
                }
                None
            }
            RunEnd::Succeeded => {
                self.failing.clear();
                self.available_again();
                self.open.take().map(|_| Change::Closed)
            }
            RunEnd::Failed(reason) => self.note_failure(id, reason, is_probe, now, pause),
            RunEnd::Unavailable(reason, delay) => {
                // The other side has said when it is worth another try.
                let asked = delay.unwrap_or_default().min(LONGEST_ASKED);
                let pause = |first, probes, longest| pause(first, probes, longest).max(asked);
                self.last_reason = reason;
                self.streak = self.streak.saturating_add(1);
                self.unavailable.insert(id);
                if let Some(open) = &mut self.open {
                    if is_probe {
                        open.by_failures = false;
                        open.probe_again(now, pause);
                    }
                    return None;
                }
                (self.unavailable.len() >= UNAVAILABLE_TO).then(|| self.open(false, now, pause))
            }
        }
    }

    fn note_failure(
        &mut self,
        id: RunId,
        reason: String,
        is_probe: bool,
        now: Instant,
        pause: impl FnOnce(Duration, u32, Duration) -> Duration,
    ) -> Option<Change> {
        if self.failing.len() < self.config.failing_keys as usize {
            self.failing.insert(id);
        }
        match &mut self.open {
            Some(open) if is_probe && open.by_failures => {
                open.probe_again(now, pause);
                self.last_reason = reason;
                None
            }
            Some(_) if is_probe => {
                self.available_again();
                self.open = None;
                Some(Change::Closed)
            }
            // A run that started before it was opened shows nothing new.
            Some(_) => None,
            None => {
                self.available_again();
                let many =
                    self.config.failing_keys > 0 && self.failing.len() >= self.config.failing_keys as usize;
                many.then(|| {
                    self.last_reason = reason;
                    self.open(true, now, pause)
                })
            }
        }
    }

    fn available_again(&mut self) {
        self.unavailable.clear();
        self.streak = 0;
    }

    fn open(
        &mut self,
        by_failures: bool,
        now: Instant,
        pause: impl FnOnce(Duration, u32, Duration) -> Duration,
    ) -> Change {
        self.openings += 1;
        let number = self.openings;
        let mut open = Open { number, by_failures, since: now, probes: 0, probe_at: now, probing: false };
        open.probe_again(now, pause);
        self.open = Some(open);
        Change::Opened
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The number of its opening while it is open, from 1.
    pub(crate) fn opening(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.number)
    }

    /// True if a probe may start now.
    pub(crate) fn may_probe(&self, now: Instant) -> bool {
        self.open.as_ref().is_some_and(|open| !open.probing && open.probe_at <= now)
    }

    /// A run starts, which is a probe if this is open: its end will be noted with the number that this gives it.
    pub(crate) fn probe_started(&mut self) -> Option<u64> {
        let open = self.open.as_mut()?;
        open.probing = true;
        Some(open.number)
    }

    /// When the next probe may start, if none is under way.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        self.open.as_ref().filter(|open| !open.probing).map(|open| open.probe_at)
    }

    /// For how long it has been open.
    pub(crate) fn open_for(&self, now: Instant) -> Duration {
        self.open.as_ref().map_or(Duration::ZERO, |open| now.saturating_duration_since(open.since))
    }

    /// Why the handler counts as down, if it does.
    pub(crate) fn reason(&self) -> Option<HandlerOutage> {
        let failed_messages = match &self.open {
            Some(open) => open.by_failures.then_some(self.config.failing_keys),
            None if self.streak >= REPORTED_AFTER => None,
            None => return None,
        };
        Some(HandlerOutage { failed_messages, last_error: self.last_reason.clone() })
    }
}

impl Open {
    fn probe_again(&mut self, now: Instant, pause: impl FnOnce(Duration, u32, Duration) -> Duration) {
        self.probe_at = now + pause(FIRST_PAUSE, self.probes, LONGEST_PAUSE);
        self.probes = self.probes.saturating_add(1);
        self.probing = false;
    }
}
