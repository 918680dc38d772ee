//! Updates gauges once a second while deliveries wait, and logs why nothing proceeds.

use std::time::Duration;

use tokio::time::Instant;

use super::Dispatcher;
use crate::pipeline::runner::Runner;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often keys that are held elsewhere are logged.
const HELD_EVERY: Duration = Duration::from_secs(10);
/// How often a window that is full of waiting messages is logged.
const FULL_EVERY: Duration = Duration::from_secs(60);

impl<R: Runner> Dispatcher<R> {
    /// Looks, if it is time to.
    pub(super) fn look(&mut self) {
        let waits = self.window.waiting() > 0;
        let now = Instant::now();
        match self.waiting_log.look_at {
            None if !waits => return,
            None => {
                self.waiting_log.look_at = Some(now + LOOK_EVERY);
                return;
            }
            Some(at) if now < at => return,
            Some(_) => self.waiting_log.look_at = waits.then(|| now + LOOK_EVERY),
        }
        let blocked = self.timers.all().filter(|work| self.blocks_its_lane(work)).count();
        self.context.counters.set_blocked_lanes(blocked);
        self.log_held_keys(now);
        self.log_full_window(now, blocked);
    }

    fn blocks_its_lane(&self, work: &crate::pipeline::work::Work) -> bool {
        work.lane.and_then(|lane| self.lanes.get(&lane)).is_some_and(|lane| !lane.waiting.is_empty())
    }

    fn log_held_keys(&mut self, now: Instant) {
        let ends = self.timers.all().filter_map(|work| work.held_until).filter(|end| *end > now);
        let (keys, last) = ends.fold((0_usize, now), |(keys, last), end| (keys + 1, last.max(end)));
        if keys == 0 {
            self.waiting_log.held_logged_at = None;
        } else if self.waiting_log.held_logged_at.is_none_or(|at| now - at >= HELD_EVERY) {
            self.waiting_log.held_logged_at = Some(now);
            tracing::info!(
                "{keys} keys are held by claims of other processes; the longest lease ends in at most {:?}",
                Duration::from_secs((last - now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX))
            );
        }
    }

    fn log_full_window(&mut self, now: Instant, blocked_lanes: usize) {
        if self.window.is_full_of_waiting()
            && self.waiting_log.full_logged_at.is_none_or(|at| now - at >= FULL_EVERY)
        {
            self.waiting_log.full_logged_at = Some(now);
            tracing::warn!(
                waiting = self.window.waiting(),
                blocked_lanes,
                "intake paused: too many messages wait for a retry, for another message of their order key, or for a \
                 claim of another process; raise max_waiting, or find the cause of the wait"
            );
        }
    }
}
