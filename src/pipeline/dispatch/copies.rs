//! Applies the outcome of a delivery to its copies.

use std::time::Duration;

use super::Dispatcher;
use crate::delivery::Settlement;
use crate::pipeline::config::Mode;
use crate::pipeline::event::Report;
use crate::pipeline::limits::LONGEST;
use crate::pipeline::runner::Runner;
use crate::pipeline::spans;
use crate::pipeline::work::{OwedReply, Plan, Verdict, Work};
use crate::telemetry::Counter;

impl<R: Runner> Dispatcher<R> {
    /// Applies the outcome of a message to its copy: the copy of a completed message is acked, the copy of one that
    /// returns to the broker is returned as well and uses up no attempt. A message that differs (another payload, a
    /// later generation) is no copy and leads for itself.
    pub(super) fn follow(&mut self, leader: &Report, follower: Work) {
        // What may be a letter that was moved back asks the store itself whether its key is dead.
        let is_dead = matches!(
            leader.verdict,
            Verdict::Ack(Counter::DeadLettered | Counter::LettersDropped | Counter::DuplicatesOfDead)
        );
        let is_copy = follower.fingerprint == leader.fingerprint
            && follower.generation <= leader.generation
            && !(follower.unproven && is_dead);
        if !is_copy || self.context.config.mode == Mode::Observe {
            self.ready.push_back(follower);
            return;
        }
        match leader.verdict {
            Verdict::Ack(Counter::Handled | Counter::Duplicates)
                if !leader.is_unrecorded && self.context.owes_reply(&follower) =>
            {
                self.reply_to_copy(leader, follower);
            }
            Verdict::Ack(Counter::Handled | Counter::Duplicates) => {
                // Where there is no record, to ask the store for the result would be another run.
                let undeliverable = usize::from(self.context.owes_reply(&follower));
                self.context.count(Counter::RepliesUndeliverable, undeliverable);
                self.measure_copy(leader, &follower);
                self.ack_copy(Counter::Duplicates, follower);
            }
            Verdict::Ack(Counter::DeadLettered | Counter::LettersDropped | Counter::DuplicatesOfDead) => {
                self.ack_copy(Counter::DuplicatesOfDead, follower);
            }
            Verdict::Ack(_) | Verdict::Reject => self.ready.push_back(follower),
            Verdict::GiveBack { after } => {
                self.count_end(Counter::GivenBack, &follower);
                self.settle_copy(follower, Some(Settlement::Retry { after: after.min(LONGEST) }));
            }
            Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown | Verdict::Abandon => {
                self.count_end(Counter::GivenBack, &follower);
                self.settle_copy(follower, None);
            }
        }
    }

    /// Sends a copy that asks for a reply the one that its leader was sent. If that was sent none, or the store may keep another result,
    /// the copy asks the store for it, and those that follow it get its reply.
    fn reply_to_copy(&mut self, leader: &Report, mut follower: Work) {
        if let Some(OwedReply { key, result, .. }) = leader.replied.as_deref() {
            self.measure_copy(leader, &follower);
            follower.owed = Some(Box::new(OwedReply::new(*key, result.clone(), true)));
            follower.plan = Plan::Ack(Counter::Duplicates);
        }
        self.ready.push_back(follower);
    }

    /// Of a delivery whose reply has failed, only the reply is missing. It leads its key no longer, and asks the store for nothing: the
    /// record may be gone by then, or the store down, and it would run again.
    pub(super) fn keep_for_its_reply(&mut self, work: &mut Work) {
        if let Some(end) = work.owed.as_deref().and_then(|owed| owed.end) {
            self.stop_leading(work);
            (work.plan, work.lost) = (Plan::Ack(end), 0);
        }
    }

    /// Notes that the follower is a duplicate.
    fn measure_copy(&self, leader: &Report, follower: &Work) {
        // The span of a leader that was a duplicate itself is not that of the run that had the effect.
        let had_effect = leader.verdict == Verdict::Ack(Counter::Handled);
        let first = leader.trace.filter(|_| had_effect);
        self.context.measurer.duplicate(Duration::ZERO, follower.receipt.span(), first);
    }

    fn ack_copy(&mut self, counter: Counter, follower: Work) {
        self.count_end(counter, &follower);
        self.settle_copy(follower, Some(Settlement::Ack));
    }

    fn count_end(&self, counter: Counter, follower: &Work) {
        spans::note_end(follower, Verdict::Ack(counter));
        self.context.ends().add(&follower.message, counter);
    }

    fn settle_copy(&mut self, follower: Work, settlement: Option<Settlement>) {
        self.let_go(follower.footprint());
        let lane = follower.lane;
        match settlement {
            Some(settlement) => follower.receipt.settle(settlement),
            None => drop(follower.receipt),
        }
        self.advance(lane);
    }
}
