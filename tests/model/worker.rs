//! The worker: one lane takes one delivery from receive to settle. A worker has one or two lanes, and dies as a whole.

use crate::bugs::Bug;
use crate::record::{Answer, ClaimId, Request, Rules};

/// Which promise the lane works under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    /// The effect is outside; the completion follows it.
    Deduplicated,
    /// The effect commits with its fenced completion.
    EffectivelyOnce,
}

/// Where a lane is. The `…ing` phases have a request under way, repeated until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) enum Phase {
    #[default]
    Idle,
    /// Received. Stays here while the key is in progress elsewhere: the delivery is held.
    Claiming,
    /// The claim is ours, the handler not yet started.
    Claimed,
    /// The `started` write of a key that was lost before.
    Starting,
    /// The handler runs; no effect so far.
    Running,
    /// The handler is done. `deduplicated`: the effect has happened. `effectively-once`: it is in the open transaction.
    Completing,
    /// `effectively-once`: the commit's reply was lost.
    InDoubt,
    Failing,
    Releasing,
    /// The dead letter is being published.
    Publishing,
    MarkingDead,
    Acking,
}

/// One lane's volatile memory: a crash loses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Lane {
    pub(crate) phase: Phase,
    pub(crate) key: u8,
    pub(crate) message: u8,
    /// The worker's own deadline has passed (rule 3): it comes before the store's lease runs out.
    pub(crate) overdue: bool,
    /// In `Claiming` only the token is known.
    pub(crate) claim: ClaimId,
}

/// What a lane does with its message after an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    Keep,
    /// Back to the broker, to be delivered again. Never an ack.
    Return,
}

impl Lane {
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The handler has started and its completion is not yet known to be written.
    pub(crate) fn is_in_a_run(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Completing)
    }

    pub(crate) fn holds_a_claim(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Claiming | Phase::Acking)
    }

    /// Whether this lane keeps the lease of `id` alive.
    pub(crate) fn keeps_alive(&self, id: ClaimId) -> bool {
        match self.phase {
            Phase::Idle | Phase::Acking => false,
            Phase::Claiming => self.claim.token == id.token,
            _ => self.claim == id && !self.overdue,
        }
    }

    /// The request this phase has under way.
    pub(crate) fn request(&self, level: Level) -> Option<Request> {
        let id = self.claim;
        match (self.phase, level) {
            (Phase::Claiming, _) => Some(Request::Claim { token: id.token }),
            (Phase::Starting, _) => Some(Request::Started(id)),
            (Phase::Completing, Level::Deduplicated) => Some(Request::Complete(id)),
            (Phase::Completing, Level::EffectivelyOnce) => Some(Request::Commit(id)),
            (Phase::Failing, _) => Some(Request::Fail(id)),
            (Phase::Releasing, _) => Some(Request::Release(id)),
            (Phase::MarkingDead, _) => Some(Request::MarkDead(id)),
            _ => None,
        }
    }

    /// The answer arrived: the next phase, and what happens to the delivery.
    pub(crate) fn hear(&mut self, answer: Answer, rules: Rules) -> Next {
        let publish_first = !rules.has(Bug::DeadBeforePublish);
        let dead_letter = if publish_first { Phase::Publishing } else { Phase::MarkingDead };
        match (self.phase, answer) {
            (Phase::Claiming, Answer::Claimed { fence, was_lost }) => {
                self.claim.fence = fence;
                self.phase = if was_lost { Phase::Starting } else { Phase::Claimed };
            }
            (Phase::Claiming, Answer::Exhausted { fence }) => {
                self.claim.fence = fence;
                self.phase = dead_letter;
            }
            (Phase::Claiming, Answer::Settled) => self.ack(),
            (Phase::Claiming, Answer::InProgress) if rules.has(Bug::InProgressAcked) => self.ack(),
            (Phase::Claiming, _) => {}
            (Phase::Starting, Answer::Written) => self.phase = Phase::Claimed,
            (Phase::Completing, Answer::Written | Answer::Already | Answer::Settled) => self.ack(),
            (Phase::Failing, Answer::LastAttempt) => self.phase = dead_letter,
            // Whatever the record is by now, the dead letter is out.
            (Phase::MarkingDead, _) if publish_first => self.ack(),
            (Phase::MarkingDead, _) => self.phase = Phase::Publishing,
            // The claim is lost, released or failed: the delivery goes back.
            _ => return Next::Return,
        }
        Next::Keep
    }

    /// No answer came: unknown is not failed. The same request is sent again, with the same token.
    pub(crate) fn hear_nothing(&mut self, level: Level, fresh_token: u8, rules: Rules) {
        match (self.phase, level) {
            // A transaction cannot be repeated, only run again: its fenced update then finds the first one's work.
            (Phase::Completing, Level::EffectivelyOnce) => self.phase = Phase::InDoubt,
            (Phase::Completing, Level::Deduplicated) if rules.has(Bug::ReleaseAfterComplete) => {
                self.phase = Phase::Releasing;
            }
            (Phase::Claiming, _) if rules.has(Bug::ClaimRetriedWithNewToken) => {
                self.claim.token = fresh_token
            }
            _ => {}
        }
    }

    /// After a commit in doubt: the claim, repeated with the same token, returns whether it is completed or still
    /// pending.
    pub(crate) fn ask_again(&mut self) {
        self.phase = Phase::Claiming;
        self.overdue = false;
        self.claim.fence = 0;
    }

    /// The dead letter's publish is confirmed.
    pub(crate) fn published(&mut self, rules: Rules) {
        if rules.has(Bug::DeadBeforePublish) {
            self.ack();
        } else {
            self.phase = Phase::MarkingDead;
        }
    }

    fn ack(&mut self) {
        *self = Lane { phase: Phase::Acking, key: self.key, message: self.message, ..Lane::default() };
    }
}
