//! The order of a lane: sequences of consecutive messages whose claims are made together.
//!
//! One lane of three messages, one worker, and a store of which only the holder of each key matters here. A turn begins when the
//! run before it has succeeded and its completion has been sent; completions become durable in any order; settlements come in
//! the lane's. Leases, tokens and dead letters are `model.rs`'s subject.

use stateright::{Model, Property};

mod checks;

const LONG: usize = 3;

/// One rule broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// A turn begins although the run before it goes on.
    StartsBesideARun,
    /// A failed run does not end the turns.
    GoesOnAfterAFailure,
    /// A key in progress elsewhere is passed over.
    PassesAHeldKey,
    /// A refused completion does not end the turns.
    GoesOnAfterARefusal,
    /// A turn begins on a claim that another has taken over.
    StartsWithoutItsClaim,
    /// A message is settled as soon as it is completed.
    SettlesPastOthers,
    /// A message is settled as soon as its completion is sent.
    SettlesWhatIsSent,
    /// A sequence holds two messages with one key.
    ClaimsAKeyTwice,
    /// What has not started when the turns end keeps its claims.
    KeepsUnstartedClaims,
    /// Releasing it uses an attempt.
    ReleaseUsesAnAttempt,
}

#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    /// The key of each message.
    pub(crate) keys: [usize; LONG],
    pub(crate) faults: u8,
    pub(crate) bug: Option<Bug>,
    pub(crate) properties: fn() -> Vec<Property<Lanes>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Record {
    Absent,
    /// Held by this life of the worker.
    Ours,
    /// Held by an earlier life or by another worker, until its lease ends.
    Elsewhere,
    Completed,
}

/// Where a message of the lane is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Place {
    Waiting,
    Claimed,
    Running,
    /// Succeeded; its completion is under way.
    Sent,
    /// Known to be completed.
    Durable,
    Settled,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    records: [Record; LONG],
    places: [Place; LONG],
    /// Turns may begin.
    goes_on: bool,
    /// Completions that a worker had sent when it died.
    late: [bool; LONG],
    faults_left: u8,
    // What the properties remember.
    effects: [u8; LONG],
    /// The message with the latest first effect, and one more.
    latest: usize,
    excused: [bool; LONG],
    out_of_order: bool,
    settled_early: bool,
    started_without_claim: bool,
    refused: bool,
    started_after_refusal: bool,
    attempts: u8,
    failures: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Claims what comes next, as many as there are.
    Claim,
    Start(usize),
    Succeed(usize),
    Fail(usize),
    /// Its claim is lost before its turn.
    GiveUp(usize),
    Complete(usize),
    /// The completion is written, and its reply lost.
    ReplyLost(usize),
    Settle(usize),
    Crash,
    LateCompletion(usize),
    /// Another worker takes the claim over.
    TakeOver(usize),
    LeaseEnds(usize),
}

impl State {
    fn in_sequence(&self) -> bool {
        self.places.iter().any(|place| matches!(place, Place::Claimed | Place::Running | Place::Sent))
    }

    fn ghost_effect(&mut self, message: usize, key: usize) {
        if self.effects[key] == 0 {
            self.out_of_order |= message < self.latest;
            self.latest = message + 1;
        }
        self.effects[key] = (self.effects[key] + 1).min(3);
    }
}

impl Lanes {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The turns are over: what has not started is released.
    fn stop(&self, state: &mut State) {
        state.goes_on = false;
        for (message, key) in self.keys.into_iter().enumerate() {
            if state.places[message] == Place::Claimed {
                state.places[message] = Place::Waiting;
                state.attempts += u8::from(self.has(Bug::ReleaseUsesAnAttempt));
                if state.records[key] == Record::Ours && !self.has(Bug::KeepsUnstartedClaims) {
                    state.records[key] = Record::Absent;
                }
            }
        }
    }

    fn claim(&self, state: &mut State) {
        state.goes_on = true;
        let mut claimed = [false; LONG];
        for (message, key) in self.keys.into_iter().enumerate() {
            if state.places[message] >= Place::Durable {
                continue;
            }
            if claimed[key] && !self.has(Bug::ClaimsAKeyTwice) {
                return;
            }
            match state.records[key] {
                Record::Absent => state.places[message] = Place::Claimed,
                Record::Ours if claimed[key] => state.places[message] = Place::Claimed,
                Record::Completed => state.places[message] = Place::Durable,
                Record::Ours | Record::Elsewhere if self.has(Bug::PassesAHeldKey) => continue,
                Record::Ours | Record::Elsewhere => return,
            }
            if state.places[message] == Place::Claimed {
                state.records[key] = Record::Ours;
                claimed[key] = true;
            }
        }
    }

    fn complete(&self, state: &mut State, message: usize) {
        let key = self.keys[message];
        if state.records[key] == Record::Elsewhere {
            state.places[message] = Place::Waiting;
            state.excused[key] = true;
            state.refused = true;
            if !self.has(Bug::GoesOnAfterARefusal) {
                self.stop(state);
            }
            return;
        }
        state.records[key] = Record::Completed;
        state.places[message] = Place::Durable;
    }

    fn crash(&self, state: &mut State) {
        for (message, key) in self.keys.into_iter().enumerate() {
            if state.places[message] == Place::Sent {
                state.late[message] = true;
                state.excused[key] = true;
            }
            if state.places[message] != Place::Settled {
                state.places[message] = Place::Waiting;
            }
            if state.records[key] == Record::Ours {
                state.records[key] = Record::Elsewhere;
            }
        }
        state.goes_on = false;
        // Another life may go on.
        state.refused = false;
    }
}

impl Model for Lanes {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            records: [Record::Absent; LONG],
            places: [Place::Waiting; LONG],
            goes_on: false,
            late: [false; LONG],
            faults_left: self.faults,
            effects: [0; LONG],
            latest: 0,
            excused: [false; LONG],
            out_of_order: false,
            settled_early: false,
            started_without_claim: false,
            refused: false,
            started_after_refusal: false,
            attempts: 0,
            failures: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut next = *state;
        if !state.in_sequence() {
            self.claim(&mut next);
            if (next.places, next.records) != (state.places, state.records) {
                actions.push(Action::Claim);
            }
        }
        let faults = state.faults_left > 0;
        let running = state.places.contains(&Place::Running);
        let first = state.places.iter().position(|place| *place == Place::Claimed);
        if let Some(first) = first.filter(|_| state.goes_on && (!running || self.has(Bug::StartsBesideARun)))
        {
            let is_ours = state.records[self.keys[first]] == Record::Ours;
            // Its own deadline passes before its lease ends.
            actions.push(match is_ours || self.has(Bug::StartsWithoutItsClaim) {
                true => Action::Start(first),
                false => Action::GiveUp(first),
            });
        }
        for (message, key) in self.keys.into_iter().enumerate() {
            let before = &state.places[..message];
            match state.places[message] {
                Place::Running => {
                    actions.push(Action::Succeed(message));
                    actions.extend(faults.then_some(Action::Fail(message)));
                }
                Place::Sent => {
                    actions.push(Action::Complete(message));
                    let lost = faults && state.records[key] == Record::Ours;
                    actions.extend(lost.then_some(Action::ReplyLost(message)));
                    actions.extend(self.has(Bug::SettlesWhatIsSent).then_some(Action::Settle(message)));
                }
                Place::Durable => {
                    let passes = self.has(Bug::SettlesPastOthers);
                    let is_next = before.iter().all(|place| *place == Place::Settled);
                    actions.extend((is_next || passes).then_some(Action::Settle(message)));
                }
                Place::Waiting | Place::Claimed | Place::Settled => {}
            }
            actions.extend(state.late[message].then_some(Action::LateCompletion(message)));
            let taken = faults && state.records[key] == Record::Ours;
            actions.extend(taken.then_some(Action::TakeOver(key)));
            let ends = state.records[key] == Record::Elsewhere;
            actions.extend(ends.then_some(Action::LeaseEnds(key)));
        }
        actions.extend((faults && state.in_sequence()).then_some(Action::Crash));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        let key = |message: usize| self.keys[message];
        match action {
            Action::Claim => self.claim(&mut state),
            Action::Start(message) => {
                state.places[message] = Place::Running;
                state.started_without_claim |= state.records[key(message)] != Record::Ours;
                state.started_after_refusal |= state.refused;
            }
            Action::Succeed(message) => {
                state.places[message] = Place::Sent;
                state.ghost_effect(message, key(message));
            }
            Action::Fail(message) => {
                state.places[message] = Place::Waiting;
                if state.records[key(message)] == Record::Ours {
                    state.records[key(message)] = Record::Absent;
                }
                (state.attempts, state.failures) = (state.attempts + 1, state.failures + 1);
                if !self.has(Bug::GoesOnAfterAFailure) {
                    self.stop(&mut state);
                }
            }
            Action::GiveUp(_) => self.stop(&mut state),
            Action::Complete(message) => self.complete(&mut state, message),
            Action::ReplyLost(message) => {
                state.records[key(message)] = Record::Completed;
                self.stop(&mut state);
            }
            Action::Settle(message) => {
                state.settled_early |= state.records[key(message)] != Record::Completed;
                state.places[message] = Place::Settled;
            }
            Action::Crash => self.crash(&mut state),
            Action::LateCompletion(message) => {
                state.late[message] = false;
                if state.records[key(message)] == Record::Elsewhere {
                    state.records[key(message)] = Record::Completed;
                }
            }
            Action::TakeOver(key) => {
                state.records[key] = Record::Elsewhere;
                state.excused[key] = true;
            }
            Action::LeaseEnds(key) => state.records[key] = Record::Absent,
        }
        if matches!(action, Action::Fail(_) | Action::ReplyLost(_) | Action::Crash | Action::TakeOver(_)) {
            state.faults_left -= 1;
        }
        if !state.in_sequence() {
            state.refused = false;
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        (self.properties)()
    }
}
