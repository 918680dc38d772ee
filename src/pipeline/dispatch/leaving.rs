//! Gives back the unstarted deliveries of a partition that is being revoked.

use super::Dispatcher;
use super::queue::extract;
use crate::pipeline::runner::Runner;
use crate::pipeline::work::Work;
use crate::telemetry::Counter;

/// Epochs that have left are remembered for deliveries that arrive late, so many of them.
const REMEMBERED: usize = 1024;

impl<R: Runner> Dispatcher<R> {
    /// Gives back all deliveries of this epoch that have not started. Those that run finish and are settled.
    pub(super) fn leave(&mut self, epoch: u64) {
        self.context.halt.leave(epoch);
        self.left.push_back(epoch);
        while self.left.len() > REMEMBERED
            && let Some(oldest) = self.left.pop_front()
        {
            if self.window.holds_of(oldest) {
                self.left.push_back(oldest);
                break;
            }
            self.context.halt.forget(oldest);
        }
        let leaves = |work: &Work| work.receipt.tag().epoch == epoch;
        // Those behind others first, so that what follows in a lane does not wait for what leaves.
        let mut in_lanes = Vec::new();
        for lane in self.lanes.values_mut() {
            in_lanes.extend(extract(&mut lane.waiting, leaves));
        }
        // All others are the first of their lane, if they have one.
        let mut first = self.timers.take_if(leaves);
        for followers in self.leaders.values_mut() {
            first.extend(followers.extract_if(.., |work| leaves(work)));
        }
        first.extend(extract(&mut self.ready, leaves));
        first.extend(extract(&mut self.unanswered, leaves));
        first.extend(extract(&mut self.unidentified.waiting, leaves));
        first.extend(self.suspects.take_if(leaves));
        // In the order of their delivery, which a broker may keep; lanes have none.
        in_lanes.sort_by_key(|work| work.receipt.tag());
        first.sort_by_key(|work| work.receipt.tag());
        let count = in_lanes.len() + first.len();
        in_lanes.into_iter().for_each(|work| self.give_back(work));
        first.into_iter().for_each(|work| self.give_back_first(work));
        tracing::info!(given_back = count, "partition being revoked; unstarted deliveries given back");
    }

    /// Releases a delivery that is the first of its lane and may lead its key.
    pub(super) fn give_back_first(&mut self, mut work: Work) {
        let lane = work.lane;
        self.stop_leading(&mut work);
        self.give_back(work);
        self.advance(lane);
    }

    /// Gives a delivery back to the broker at once.
    pub(super) fn give_back(&mut self, mut work: Work) {
        self.context.ends().add(&work.message, Counter::GivenBack);
        self.window.wake(&mut work);
        self.let_go(work.footprint());
        drop(work.receipt);
    }
}
