//! Adds to the first delivery of a lane those that wait behind it, and takes back what is left of such a sequence.

use std::time::Duration;

use super::Dispatcher;
use crate::pipeline::config::Mode;
use crate::pipeline::event::SequenceEnded;
use crate::pipeline::runner::Runner;
use crate::pipeline::work::{Behind, Plan, Turn, Work};

impl<R: Runner> Dispatcher<R> {
    /// Takes up to `limit` sequences with distinct keys, and of `most` deliveries together.
    pub(super) fn next_sequences(&mut self, limit: usize, most: usize) -> Vec<Work> {
        let mut round = Vec::with_capacity(limit.min(self.ready.len()));
        let mut count = 0;
        while count < limit
            && round.len() < most
            && let Some(work) = self.ready.pop_front()
        {
            if let Some(work) = self.lead(work) {
                count += 1;
                round.push(work);
                self.add_sequence(&mut round, most);
            }
        }
        round
    }

    /// Adds to the last delivery of `round` those that come next in its lane, up to `most` in all.
    pub(super) fn add_sequence(&mut self, round: &mut Vec<Work>, most: usize) {
        let Some(first) = round.last() else { return };
        let (Some(lane), lost, turn) = (first.lane, first.lost, first.turn) else { return };
        let room = self.longest_sequence(first).saturating_sub(1);
        let room = room.min(most.saturating_sub(round.len()));
        for _ in 0..room {
            let Some(next) = self.next_of_lane(lane, lost) else { return };
            let Some(mut next) = self.lead(next) else { return };
            next.turn = turn;
            round.push(next);
        }
    }

    /// How many deliveries of a lane may be claimed together, if this is the first.
    fn longest_sequence(&mut self, first: &Work) -> usize {
        // A handler in its completion's transaction shares transactions instead; in observe mode nothing changes.
        let by_one = R::NEEDS_CLAIM || self.context.config.mode == Mode::Observe || self.breaker.is_open();
        // Most likely it ends the sequence again: it has failed before, or another has its key.
        let is_doubtful = first.last_delay > Duration::ZERO || (first.lost == 0 && first.holds > 0);
        if by_one || is_doubtful || first.turn == Some(Turn::Alone) || !goes_on(&first.plan) {
            return 1;
        }
        // Of suspects half as many after each further lapse: see `suspects.rs`.
        let most = self.context.config.lane_batch;
        let lane = first.lane.and_then(|lane| self.lanes.get_mut(&lane));
        let most = lane.map_or(most, |lane| lane.next_length(most));
        most.checked_shr(first.lost.saturating_sub(1)).unwrap_or(0).max(1)
    }

    /// The next delivery of the lane, if it may follow one of whose key so many claims have lapsed.
    fn next_of_lane(&mut self, lane: u64, lost: u32) -> Option<Work> {
        let waiting = &mut self.lanes.get_mut(&lane)?.waiting;
        let leaders = &self.leaders;
        // A second message with the same key must see the outcome of the first.
        waiting.pop_front_if(|next| {
            goes_on(&next.plan)
                && next.lost == lost
                && next.key().is_none_or(|key| !leaders.contains_key(&key))
        })
    }

    /// Takes back what is left of a sequence; its lane goes on.
    pub(super) fn note_sequence_end(&mut self, ended: SequenceEnded) {
        let SequenceEnded { lane, is_turn, count, took, first, behind } = ended;
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.adapt(count, took, self.context.config.lane_batch);
        }
        for Behind { work, plan } in behind.into_iter().rev() {
            self.return_to_lane(lane, work, plan);
        }
        match first {
            Some(first) => self.conclude_all(vec![first]),
            None => {
                if is_turn {
                    self.suspects.turn_ended();
                }
                self.advance(Some(lane));
            }
        }
    }

    /// Puts a delivery in front of those that wait in its lane.
    fn return_to_lane(&mut self, lane: u64, mut work: Work, plan: Option<Plan>) {
        (work.turn, work.probe, work.held_until) = (None, None, None);
        // It may wait for long, and its copies are in other lanes: they must not wait for it, which could wait for them.
        self.stop_leading(&mut work);
        work.plan = plan.unwrap_or(work.plan);
        if self.context.halt.is_leaving(work.receipt.tag().epoch) {
            self.give_back(work);
            return;
        }
        self.window.wait(&mut work);
        self.lanes.entry(lane).or_default().waiting.push_front(work);
    }
}

/// True if those behind a delivery with this plan may be claimed with it: it most likely ends well.
fn goes_on(plan: &Plan) -> bool {
    matches!(plan, Plan::Claim(_) | Plan::Unprotected | Plan::Ack(_))
}

/// The first delivery of each slot that a round takes: those of a lane run one after the other, in one slot.
pub(super) fn slots(round: &[Work]) -> impl Iterator<Item = &Work> {
    let same_lane =
        |index: usize| index > 0 && round[index].lane.is_some() && round[index - 1].lane == round[index].lane;
    round.iter().enumerate().filter(move |(index, _)| !same_lane(*index)).map(|(_, work)| work)
}
