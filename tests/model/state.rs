//! The whole system in one value: store, workers, broker, network, and what the properties remember.

use crate::record::{ClaimId, Record, Request};
use crate::worker::{Lane, Level, Phase};

pub(crate) const KEYS: usize = 2;
pub(crate) const LANES: usize = 2;
pub(crate) const MESSAGES: usize = 2;

/// One message at the broker. Two with the same key are a producer's duplicates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Message {
    pub(crate) key: u8,
    pub(crate) at: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Place {
    /// Waiting to be delivered, for the first time or again.
    Ready,
    /// Delivered to this lane and not acked; the lane's receipt is good.
    Held(u8),
    Acked,
    /// The producer never sent it.
    Unpublished,
}

/// A request still on its way when its sender had stopped waiting for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Late {
    pub(crate) key: u8,
    pub(crate) request: Request,
}

/// What the properties remember about one key. No step of the protocol reads it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ghost {
    /// Effects since the key was last absent by TTL or forget; stops at 2.
    pub(crate) effects: u8,
    pub(crate) had_effect: bool,
    pub(crate) was_completed: bool,
    /// A dead letter was published and confirmed.
    pub(crate) has_letter: bool,
    /// Handler runs still allowed: the attempts, and one more for the first lapse, for which no attempt is counted.
    pub(crate) runs_left: i8,
    /// The proviso of `deduplicated` is broken: an owner died between effect and completion, or a run lost its claim.
    pub(crate) excused: bool,
    /// A pending claim was forgotten (by an operator, or by a failover): its owner cannot know.
    pub(crate) claim_forgotten: bool,
    pub(crate) acked_unsettled: bool,
    pub(crate) touched_by_another: bool,
    pub(crate) started_without_claim: bool,
}

impl Ghost {
    pub(crate) fn new(max_attempts: u8) -> Self {
        Ghost {
            effects: 0,
            had_effect: false,
            was_completed: false,
            has_letter: false,
            runs_left: max_attempts as i8 + 1,
            excused: false,
            claim_forgotten: false,
            acked_unsettled: false,
            touched_by_another: false,
            started_without_claim: false,
        }
    }

    pub(crate) fn add_effect(&mut self) {
        self.effects = (self.effects + 1).min(2);
        self.had_effect = true;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) records: [Record; KEYS],
    pub(crate) lanes: [Lane; LANES],
    pub(crate) messages: [Message; MESSAGES],
    pub(crate) late: Option<Late>,
    pub(crate) faults_left: u8,
    /// A fault other than a lost reply, a failing handler or a plain redelivery has happened.
    pub(crate) disturbed: bool,
    pub(crate) next_token: u8,
    pub(crate) next_fence: u8,
    pub(crate) ghosts: [Ghost; KEYS],
}

impl State {
    pub(crate) fn record(&self, lane: usize) -> &Record {
        &self.records[self.lanes[lane].key as usize]
    }

    pub(crate) fn ghost(&mut self, lane: usize) -> &mut Ghost {
        &mut self.ghosts[self.lanes[lane].key as usize]
    }

    pub(crate) fn message(&mut self, lane: usize) -> &mut Message {
        &mut self.messages[self.lanes[lane].message as usize]
    }

    pub(crate) fn fresh_token(&mut self) -> u8 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// The lane's receipt still counts: the broker has not taken the message back.
    pub(crate) fn receipt_is_good(&self, lane: usize) -> bool {
        let here = &self.lanes[lane];
        !here.is_idle() && self.messages[here.message as usize].at == Place::Held(lane as u8)
    }

    /// The message goes back to the broker and the lane is free: a nack, or the end of a connection.
    pub(crate) fn return_message(&mut self, lane: usize) {
        if self.receipt_is_good(lane) {
            self.message(lane).at = Place::Ready;
        }
        self.lanes[lane] = Lane::default();
    }

    /// Some live lane holds this claim, or asks for it, and its deadline has not passed.
    pub(crate) fn is_kept_alive(&self, id: ClaimId) -> bool {
        self.lanes.iter().any(|lane| lane.keeps_alive(id))
    }

    /// Some lane is between the handler's start and its completion on this key.
    pub(crate) fn has_a_run(&self, key: usize) -> bool {
        self.lanes.iter().any(|lane| lane.key as usize == key && lane.is_in_a_run())
    }

    /// The lane's effect has happened outside, and its completion is not written.
    pub(crate) fn has_uncompleted_effect(&self, lane: usize, level: Level) -> bool {
        let here = &self.lanes[lane];
        let waits = level == Level::Deduplicated && here.phase == Phase::Completing;
        waits && !self.record(lane).is_completed_by(here.claim)
    }

    /// Every message is acked, and its effect has happened or its dead letter is out.
    pub(crate) fn is_settled(&self) -> bool {
        self.messages.iter().all(|message| match message.at {
            Place::Unpublished => true,
            Place::Acked => self.is_accounted_for(message),
            Place::Ready | Place::Held(_) => false,
        })
    }

    pub(crate) fn is_accounted_for(&self, message: &Message) -> bool {
        let ghost = &self.ghosts[message.key as usize];
        ghost.had_effect || ghost.has_letter
    }

    /// The same state up to names, so that states that differ in names only are explored once: which lane is which, which of
    /// two copies is which, and the values of tokens and fences, which are compared for equality and never for size.
    pub(crate) fn representative(&self) -> State {
        let mut state = *self;
        state.order_lanes();
        state.order_messages();
        state.rename_claims();
        state
    }

    fn order_lanes(&mut self) {
        let rank = |lane: &Lane| (lane.phase, lane.key, lane.overdue);
        if rank(&self.lanes[1]) < rank(&self.lanes[0]) {
            self.lanes.swap(0, 1);
            for message in &mut self.messages {
                if let Place::Held(lane) = &mut message.at {
                    *lane = 1 - *lane;
                }
            }
        }
    }

    fn order_messages(&mut self) {
        if self.messages[0].key == self.messages[1].key && self.messages[1] < self.messages[0] {
            self.messages.swap(0, 1);
            for lane in self.lanes.iter_mut().filter(|lane| !lane.is_idle()) {
                lane.message = 1 - lane.message;
            }
        }
    }

    fn rename_claims(&mut self) {
        let (mut tokens, mut fences) = (Names::default(), Names::default());
        let mut rename =
            |id: ClaimId| ClaimId { token: tokens.rename(id.token), fence: fences.rename(id.fence) };
        for record in &mut self.records {
            record.by = rename(record.by);
        }
        for lane in &mut self.lanes {
            lane.claim = rename(lane.claim);
        }
        if let Some(late) = &mut self.late {
            late.request = late.request.with_claim(rename(late.request.claim()));
        }
        self.next_token = tokens.fresh();
        self.next_fence = fences.fresh();
    }
}

/// New names in the order of appearance; 0 is no name and stays.
#[derive(Default)]
struct Names {
    seen: [u8; 5],
    count: usize,
}

impl Names {
    fn fresh(&self) -> u8 {
        self.count as u8 + 1
    }

    fn rename(&mut self, name: u8) -> u8 {
        if name == 0 {
            return 0;
        }
        let known = self.seen[..self.count].iter().position(|seen| *seen == name);
        let index = known.unwrap_or_else(|| {
            self.seen[self.count] = name;
            self.count += 1;
            self.count - 1
        });
        index as u8 + 1
    }
}
