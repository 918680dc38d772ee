//! The number of runs at once that the other side of the handler can take: [`AdaptiveLimit`].

use tokio::time::Instant;

use crate::pipeline::breaker::RunEnd;
use crate::pipeline::event::Ended;

/// Raises the number of runs as long as they do not become slower by it, and lowers it when they do or find the handler
/// unavailable. The rule is that of TCP Vegas (Brakmo and Peterson, 1995): of `limit` runs at once, `limit × (1 - shortest / mean)`
/// wait somewhere, where `shortest` is the time that a run takes when none waits. Now and then half of the limit runs for a
/// moment, to find that time again: a queue that is always there would be taken for the time of a run.
///
/// The mean time of a run comes from how many slots were taken for how long and how many runs ended (Little's law), so that
/// nothing is measured for each run.
#[derive(Debug)]
pub(super) struct AdaptiveLimit {
    most: f64,
    limit: f64,
    /// Doubles until runs become slower for the first time.
    doubles: bool,
    /// In seconds.
    shortest: Option<f64>,
    /// Decisions until the shortest time is found again.
    until_probe: u32,
    probe: Option<Probe>,
    window: SlotUse,
}

/// What has happened since the last decision.
#[derive(Debug)]
struct SlotUse {
    /// When the number of runs changed last.
    changed_at: Instant,
    /// The sum over time of the slots that were taken, in seconds.
    slot_seconds: f64,
    ended: f64,
    /// Deliveries that took a slot and did not run.
    idle: f64,
    unavailable: bool,
    /// All slots were taken at some time.
    full: bool,
}

/// The first limit.
const FIRST: f64 = 4.0;

/// Fewer runs that wait than this, or a tenth of the limit: more may run.
const FEW: f64 = 2.0;

/// More runs that wait than this, or a fifth of the limit: fewer may run.
const MANY: f64 = 4.0;

/// With more than a run in ten that did not take place, times show nothing.
const MOST_IDLE: f64 = 10.0;

/// Decisions from one probe to the next.
const PROBE_EVERY: u32 = 100;

/// Fewer runs than usual, to see how long one takes when none waits.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// The limit before.
    limit: f64,
    /// What ran before has ended, and what ends from now on counts.
    counts: bool,
}

impl SlotUse {
    fn since(changed_at: Instant) -> Self {
        Self { changed_at, slot_seconds: 0.0, ended: 0.0, idle: 0.0, unavailable: false, full: false }
    }
}

impl AdaptiveLimit {
    pub(super) fn new(most: usize, now: Instant) -> Self {
        let most = to_float(most);
        Self {
            most,
            limit: FIRST.min(most),
            doubles: true,
            shortest: None,
            until_probe: PROBE_EVERY,
            probe: None,
            window: SlotUse::since(now),
        }
    }

    /// How many may run at once, from 1.
    pub(super) fn limit(&self) -> usize {
        // Between 1 and a count that came from a usize.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = self.limit as usize;
        limit.max(1)
    }

    /// Notes that runs start; `running` were under way before.
    pub(super) fn starts(&mut self, running: usize, starting: usize, now: Instant) {
        self.pass_time(running, now);
        self.window.full |= running + starting >= self.limit();
    }

    /// Notes what has ended; `running` slots were taken before.
    pub(super) fn ends(&mut self, running: usize, ended: &Ended, now: Instant) {
        self.pass_time(running, now);
        let unavailable = ended.failed.iter().any(|(_, end, _)| matches!(end, RunEnd::Unavailable(..)));
        self.window.ended += to_float(ended.runs);
        self.window.idle += to_float(ended.idle);
        self.window.unavailable |= unavailable;
        // So many that the mean is one of a whole set of runs.
        if self.window.ended >= self.limit.max(FIRST) {
            self.decide();
        }
    }

    fn pass_time(&mut self, running: usize, now: Instant) {
        let passed = now.saturating_duration_since(self.window.changed_at).as_secs_f64();
        self.window.slot_seconds += passed * to_float(running);
        self.window.changed_at = now;
    }

    fn decide(&mut self) {
        let SlotUse { changed_at, slot_seconds, ended, idle, unavailable, full } = self.window;
        self.window = SlotUse::since(changed_at);
        if unavailable {
            let limit = self.probe.take().map_or(self.limit, |probe| probe.limit);
            (self.limit, self.doubles) = ((limit / 2.0).max(1.0), false);
            // How long it takes to fail shows nothing.
            return;
        }
        if idle * MOST_IDLE > ended {
            // The slots of what did not run would count as time of what did: a flood of duplicates is no queue.
            return;
        }
        let mean = slot_seconds / ended;
        if let Some(probe) = &mut self.probe {
            if probe.counts {
                (self.limit, self.shortest, self.probe) = (probe.limit, Some(mean), None);
            } else {
                probe.counts = true;
            }
            return;
        }
        self.until_probe -= 1;
        if self.until_probe == 0 {
            self.until_probe = PROBE_EVERY;
            self.probe = Some(Probe { limit: self.limit, counts: false });
            self.limit = (self.limit / 2.0).max(1.0);
            return;
        }
        let shortest = self.shortest.map_or(mean, |shortest| mean.min(shortest));
        self.shortest = Some(shortest);
        let waiting = if mean > 0.0 { self.limit * (1.0 - shortest / mean) } else { 0.0 };
        if waiting > MANY.max(self.limit / 5.0) {
            (self.limit, self.doubles) = ((self.limit * 0.9).max(1.0), false);
        } else if full && waiting < FEW.max(self.limit / 10.0) {
            let step = if self.doubles { self.limit } else { self.limit.sqrt().max(1.0) };
            self.limit = (self.limit + step).min(self.most);
        }
    }
}

/// Counts of runs are far below where a float loses digits.
#[expect(clippy::cast_precision_loss)]
const fn to_float(count: usize) -> f64 {
    count as f64
}
