//! The store: one record per key, and what each request finds and writes.
//!
//! This file is the reference reading of "States of a key" and of the table "complete finds". Every request is one atomic
//! compare-and-set, as it is in a real store.

use crate::bugs::Bug;

/// The identity of a claim's holder: the owner's token, fresh for every claim, and the fence the store answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct ClaimId {
    pub(crate) token: u8,
    pub(crate) fence: u8,
}

/// The states of a key. `Absent` is never known, expired, forgotten or released; `Terminal` is `failed(terminal)`: nothing but its dead letter may follow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum Stage {
    #[default]
    Absent,
    Pending,
    Failed,
    Terminal,
    Completed,
    Dead,
}

/// What the store knows about one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Record {
    pub(crate) stage: Stage,
    /// The claim that wrote the stage.
    pub(crate) by: ClaimId,
    /// The lease ran out, in the store's time. The record outlives it.
    pub(crate) lapsed: bool,
    /// The `started` write of a key that was lost before.
    pub(crate) started: bool,
    pub(crate) attempts: u8,
    /// A claim of this key lapsed and was taken over (`lost ≥ 1`).
    pub(crate) lost: bool,
    /// A completed record whose life was cut down to a lease. Only a bug does this.
    pub(crate) short_lived: bool,
}

/// One request to the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Request {
    Claim {
        token: u8,
    },
    Started(ClaimId),
    Complete(ClaimId),
    /// The inbox: the effect and its completion in one transaction.
    Commit(ClaimId),
    Fail(ClaimId),
    Release(ClaimId),
    Renew(ClaimId),
    MarkDead(ClaimId),
}

impl Request {
    /// The claim this request speaks for; a claim under way has a token and no fence yet.
    pub(crate) fn claim(self) -> ClaimId {
        match self {
            Request::Claim { token } => ClaimId { token, fence: 0 },
            Request::Started(id)
            | Request::Complete(id)
            | Request::Commit(id)
            | Request::Fail(id)
            | Request::Release(id)
            | Request::Renew(id)
            | Request::MarkDead(id) => id,
        }
    }

    /// The same request for another claim.
    pub(crate) fn with_claim(self, id: ClaimId) -> Request {
        match self {
            Request::Claim { .. } => Request::Claim { token: id.token },
            Request::Started(_) => Request::Started(id),
            Request::Complete(_) => Request::Complete(id),
            Request::Commit(_) => Request::Commit(id),
            Request::Fail(_) => Request::Fail(id),
            Request::Release(_) => Request::Release(id),
            Request::Renew(_) => Request::Renew(id),
            Request::MarkDead(_) => Request::MarkDead(id),
        }
    }
}

/// The store's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Run the handler; `was_lost` asks for the `started` write first.
    Claimed {
        fence: u8,
        was_lost: bool,
    },
    /// Claimed for dead-lettering only.
    Exhausted {
        fence: u8,
    },
    InProgress,
    /// Completed or dead: by another claim when a fenced write meets it.
    Settled,
    /// The fenced write was made, now.
    Written,
    /// The fenced write had been made before, by this same claim.
    Already,
    /// Attempts are used up: the failure was written as `failed(terminal)` and the claim is kept for the dead letter.
    LastAttempt,
    /// The claim is another's now; nothing was changed.
    Refused,
}

/// What the store decides by, besides the record.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) max_attempts: u8,
    pub(crate) bug: Option<Bug>,
}

impl Rules {
    pub(crate) fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

impl Record {
    pub(crate) fn is_claimed(&self) -> bool {
        matches!(self.stage, Stage::Pending | Stage::Terminal)
    }

    /// The claim that keeps others out, as long as its lease is live.
    pub(crate) fn is_live_claim_of(&self, id: ClaimId) -> bool {
        self.stage == Stage::Pending && self.by == id && !self.lapsed
    }

    pub(crate) fn is_completed_by(&self, id: ClaimId) -> bool {
        self.stage == Stage::Completed && self.by == id
    }

    /// Applies one request. `fence` is the next one the store's clock would give.
    pub(crate) fn apply(&mut self, request: Request, fence: u8, rules: Rules) -> Answer {
        match request {
            Request::Claim { token } => self.claim(token, fence, rules),
            Request::Started(id) => self.start(id),
            Request::Complete(id) => self.complete(id, rules),
            Request::Commit(id) => self.commit(id, rules),
            Request::Fail(id) => self.fail(id, rules),
            Request::Release(id) => self.release(id, rules),
            Request::Renew(id) => self.renew(id, rules),
            Request::MarkDead(id) => self.mark_dead(id),
        }
    }

    /// What a claim would answer, without making it.
    pub(crate) fn would_answer(&self, token: u8, rules: Rules) -> Answer {
        let mut copy = *self;
        copy.claim(token, 0, rules)
    }

    fn claim(&mut self, token: u8, fence: u8, rules: Rules) -> Answer {
        match self.stage {
            Stage::Completed | Stage::Dead => Answer::Settled,
            Stage::Absent | Stage::Failed => self.grant(token, fence, rules),
            // A retried claim recognises itself only while pending, same token, lease live.
            Stage::Pending if !self.lapsed && self.by.token == token => {
                Answer::Claimed { fence: self.by.fence, was_lost: self.lost }
            }
            Stage::Terminal if !self.lapsed && self.by.token == token => {
                Answer::Exhausted { fence: self.by.fence }
            }
            Stage::Pending | Stage::Terminal if !self.lapsed => Answer::InProgress,
            Stage::Pending => {
                self.lost = true;
                if self.started && !rules.has(Bug::LapseAfterStartedNotCounted) {
                    self.attempts += 1;
                }
                self.grant(token, fence, rules)
            }
            Stage::Terminal => self.grant(token, fence, rules),
        }
    }

    fn grant(&mut self, token: u8, fence: u8, rules: Rules) -> Answer {
        self.by = ClaimId { token, fence };
        self.lapsed = false;
        self.started = false;
        if self.stage == Stage::Terminal || self.attempts >= rules.max_attempts {
            self.stage = Stage::Terminal;
            return Answer::Exhausted { fence };
        }
        self.stage = if rules.has(Bug::MarkBeforeHandler) { Stage::Completed } else { Stage::Pending };
        Answer::Claimed { fence, was_lost: self.lost }
    }

    fn start(&mut self, id: ClaimId) -> Answer {
        if self.stage != Stage::Pending || self.by != id {
            return Answer::Refused;
        }
        self.started = true;
        self.lapsed = false;
        Answer::Written
    }

    /// The table "complete finds", row by row.
    fn complete(&mut self, id: ClaimId, rules: Rules) -> Answer {
        match self.stage {
            Stage::Pending if self.by == id || rules.has(Bug::CompleteUnfenced) => {
                self.settle(Stage::Completed, id)
            }
            Stage::Completed if self.by == id => Answer::Already,
            Stage::Absent if !rules.has(Bug::CompleteOnAbsentRefused) => self.settle(Stage::Completed, id),
            Stage::Completed | Stage::Dead => Answer::Settled,
            Stage::Absent | Stage::Pending | Stage::Failed | Stage::Terminal => Answer::Refused,
        }
    }

    /// The last statement of the effect's own transaction. Anything but `Written` rolls the effect back.
    fn commit(&mut self, id: ClaimId, rules: Rules) -> Answer {
        match self.stage {
            Stage::Pending if self.by == id || rules.has(Bug::CompleteUnfenced) => {
                self.settle(Stage::Completed, id)
            }
            Stage::Completed if self.by == id && rules.has(Bug::InboxIgnoresState) => Answer::Written,
            Stage::Completed if self.by == id => Answer::Already,
            Stage::Completed | Stage::Dead => Answer::Settled,
            Stage::Absent | Stage::Pending | Stage::Failed | Stage::Terminal => Answer::Refused,
        }
    }

    fn fail(&mut self, id: ClaimId, rules: Rules) -> Answer {
        match self.stage {
            Stage::Pending if self.by == id || rules.has(Bug::FailIgnoresOwner) => {
                self.attempts += 1;
                self.started = false;
                if self.attempts >= rules.max_attempts {
                    self.stage = Stage::Terminal;
                    return Answer::LastAttempt;
                }
                self.stage = Stage::Failed;
                self.lapsed = false;
                Answer::Written
            }
            Stage::Terminal if self.by == id => Answer::LastAttempt,
            Stage::Failed if self.by == id => Answer::Already,
            _ => Answer::Refused,
        }
    }

    /// Gives an unstarted claim back: attempts and losses are as they were, and the key is free.
    fn release(&mut self, id: ClaimId, rules: Rules) -> Answer {
        match self.stage {
            Stage::Pending if self.by == id || rules.has(Bug::ReleaseIgnoresOwner) => {
                self.stage = Stage::Absent;
                self.lapsed = false;
                self.started = false;
                Answer::Written
            }
            Stage::Absent if self.by == id => Answer::Already,
            _ => Answer::Refused,
        }
    }

    fn renew(&mut self, id: ClaimId, rules: Rules) -> Answer {
        if self.stage == Stage::Completed && self.by == id && rules.has(Bug::RenewIgnoresState) {
            self.short_lived = true;
            return Answer::Written;
        }
        let mine = self.by == id || rules.has(Bug::RenewIgnoresOwner);
        if self.stage != Stage::Pending || !mine {
            return Answer::Refused;
        }
        self.lapsed = false;
        Answer::Written
    }

    /// Comes after the dead letter's publish was confirmed.
    fn mark_dead(&mut self, id: ClaimId) -> Answer {
        match self.stage {
            Stage::Terminal if self.by == id => self.settle(Stage::Dead, id),
            Stage::Dead if self.by == id => Answer::Already,
            _ => Answer::Refused,
        }
    }

    fn settle(&mut self, stage: Stage, by: ClaimId) -> Answer {
        *self = Record { stage, by, ..Record::default() };
        Answer::Written
    }

    /// Time passes: the lease runs out.
    pub(crate) fn lapse(&mut self, rules: Rules) {
        if self.short_lived || rules.has(Bug::LeaseIsTheKeysExpiry) {
            *self = Record::default();
        } else {
            self.lapsed = true;
        }
    }
}
