//! The steps of the system: what each action does, and when it can happen.
//!
//! A *fault* costs one of `Bounds::faults`; everything else is free and, between faults, always moves forward. So every path
//! ends, and a state in which nothing can happen must be a settled one.

use stateright::{Model, Property};

use crate::bugs::Bug;
use crate::properties;
use crate::record::{Answer, Record, Request, Rules, Stage};
use crate::state::{Ghost, KEYS, LANES, Late, MESSAGES, Message, Place, State};
use crate::worker::{Lane, Level, Next, Phase};

/// What may go wrong, and the few things that are no failure but must be bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A worker dies and restarts.
    Crash,
    /// A worker is paused, or cannot renew, past its deadline; it may go on later, as a zombie.
    Pause,
    /// A reply of the store, the broker's answer to an ack, or the confirm of a dead letter is lost.
    LostReply,
    /// A request is applied after its sender has given up waiting; a renewal overtaken by later steps.
    Delay,
    /// The broker delivers again what a live worker holds: visibility over, ack timeout, rebalance.
    TakeBack,
    HandlerFails,
    /// A worker gives an unstarted message back: shutdown, park.
    GiveBack,
    /// A record vanishes: operator's forget, failover to a store that lags.
    Forget,
    /// The TTL of a completed or dead key ends.
    Expire,
}

impl Fault {
    pub(crate) const ALL: &[Fault] = &[
        Fault::Crash,
        Fault::Pause,
        Fault::LostReply,
        Fault::Delay,
        Fault::TakeBack,
        Fault::HandlerFails,
        Fault::GiveBack,
        Fault::Forget,
        Fault::Expire,
    ];

    /// Faults that can make a claim lapse. Of lost replies alone none may lapse.
    fn disturbs(self) -> bool {
        matches!(self, Fault::Crash | Fault::Pause | Fault::Delay | Fault::Forget | Fault::Expire)
    }
}

/// The bounds of one exploration.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) level: Level,
    /// The key of each message: `[0]` one message, `[0, 0]` a producer's duplicates, `[0, 1]` two keys.
    pub(crate) messages: &'static [u8],
    /// The worker each lane belongs to: `[0, 1]` two workers, `[0, 0]` one with two lanes.
    pub(crate) worker_of: [u8; LANES],
    pub(crate) max_attempts: u8,
    /// How many faults, of whatever allowed kinds, in one run.
    pub(crate) faults: u8,
    pub(crate) allowed: &'static [Fault],
    pub(crate) bug: Option<Bug>,
    pub(crate) properties: fn() -> Vec<Property<Bounds>>,
}

impl Bounds {
    /// Two workers, one key, two copies, two attempts, any faults.
    pub(crate) fn new(level: Level, faults: u8) -> Self {
        Bounds {
            level,
            messages: &[0, 0],
            worker_of: [0, 1],
            max_attempts: 2,
            faults,
            allowed: Fault::ALL,
            bug: None,
            properties: properties::safety,
        }
    }

    fn rules(&self) -> Rules {
        Rules { max_attempts: self.max_attempts, bug: self.bug }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// One step. `lane` is an index; a paused worker is one whose steps are not taken for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// The broker delivers.
    Receive {
        lane: usize,
        message: usize,
    },
    /// The lane's request reaches the store, and the answer the lane.
    Asked {
        lane: usize,
    },
    /// The request is applied and its reply lost.
    ReplyLost {
        lane: usize,
    },
    /// The lane gives up waiting; its request stays on the way.
    RequestDelayed {
        lane: usize,
    },
    /// A renewal is sent and stays on the way. (One that arrives at once changes nothing.)
    RenewalDelayed {
        lane: usize,
    },
    /// The request that was on the way is applied; nobody hears the answer.
    LateRequestArrives,
    HandlerStarts {
        lane: usize,
    },
    /// `deduplicated`: the effect happens. `effectively-once`: its transaction is ready to commit.
    HandlerSucceeds {
        lane: usize,
    },
    HandlerFails {
        lane: usize,
    },
    /// The cancellation token has fired and the run has really ended, without an effect.
    HandlerCancelled {
        lane: usize,
    },
    /// A commit in doubt: the attempt runs again under the same claim.
    RunAgain {
        lane: usize,
    },
    /// A commit in doubt and no lease left: the message goes back, the claim is *not* released.
    Abandon {
        lane: usize,
    },
    /// An unstarted claim is given back to the store, the message then to the broker.
    ReleaseUnstarted {
        lane: usize,
    },
    /// A held message whose key is in progress elsewhere is parked.
    Park {
        lane: usize,
    },
    Publish {
        lane: usize,
    },
    ConfirmLost {
        lane: usize,
    },
    Ack {
        lane: usize,
    },
    /// The ack does not arrive, or its receipt is no longer good.
    AckLost {
        lane: usize,
    },
    /// The worker's own deadline passes while it is alive.
    DeadlinePasses {
        lane: usize,
    },
    /// The lease of the key's claim runs out, in the store's time.
    LeaseLapses {
        key: usize,
    },
    TakeBack {
        message: usize,
    },
    /// The worker dies; the request of `in_flight` may still arrive.
    Crash {
        worker: u8,
        in_flight: Option<usize>,
    },
    Forget {
        key: usize,
    },
    Expire {
        key: usize,
    },
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let message = |index: usize| match self.messages.get(index) {
            Some(&key) => Message { key, at: Place::Ready },
            None => Message { key: 0, at: Place::Unpublished },
        };
        vec![State {
            records: [Record::default(); KEYS],
            lanes: [Lane::default(); LANES],
            messages: std::array::from_fn::<_, MESSAGES, _>(message),
            late: None,
            faults_left: self.faults,
            disturbed: false,
            next_token: 1,
            next_fence: 1,
            ghosts: [Ghost::new(self.max_attempts); KEYS],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for lane in 0..LANES {
            self.lane_steps(state, lane, actions);
            self.lane_faults(state, lane, actions);
        }
        self.broker_steps(state, actions);
        self.store_steps(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        if let Some(fault) = self.fault_of(last, action) {
            state.faults_left -= 1;
            state.disturbed |= fault.disturbs();
        }
        self.step(&mut state, action);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        (self.properties)()
    }
}

/// When each action can happen.
impl Bounds {
    fn may(&self, state: &State, fault: Fault) -> bool {
        state.faults_left > 0 && self.allowed.contains(&fault)
    }

    /// What lanes do without any fault.
    fn lane_steps(&self, state: &State, lane: usize, actions: &mut Vec<Action>) {
        let here = &state.lanes[lane];
        match here.phase {
            Phase::Idle => {
                // Of two waiting copies of one key either would do: take the first.
                let ready = |index: &usize| state.messages[*index].at == Place::Ready;
                let twin = |index: &usize| {
                    *index == 1 && ready(&0) && state.messages[0].key == state.messages[1].key
                };
                let waiting = (0..MESSAGES).filter(|index| ready(index) && !twin(index));
                actions.extend(waiting.map(|message| Action::Receive { lane, message }));
            }
            // Asking again while the key is in progress elsewhere changes nothing: the lane asks once that is over.
            Phase::Claiming if self.is_blocked(state, lane) && !self.has(Bug::InProgressAcked) => {}
            Phase::Claimed => {
                if !here.overdue || self.has(Bug::StartsAfterDeadline) {
                    actions.push(Action::HandlerStarts { lane });
                }
                if here.overdue {
                    actions.push(Action::ReleaseUnstarted { lane });
                }
            }
            Phase::Running => {
                // Also when overdue: a zombie's handler is past every check.
                actions.push(Action::HandlerSucceeds { lane });
                if here.overdue {
                    actions.push(Action::HandlerCancelled { lane });
                }
            }
            Phase::InDoubt if here.overdue => actions.push(Action::Abandon { lane }),
            Phase::InDoubt => actions.push(Action::RunAgain { lane }),
            Phase::Publishing => actions.push(Action::Publish { lane }),
            Phase::Acking => {
                actions.push(Action::Ack { lane });
                if !state.receipt_is_good(lane) {
                    actions.push(Action::AckLost { lane });
                }
            }
            Phase::Claiming
            | Phase::Starting
            | Phase::Completing
            | Phase::Failing
            | Phase::Releasing
            | Phase::MarkingDead => actions.push(Action::Asked { lane }),
        }
    }

    fn is_blocked(&self, state: &State, lane: usize) -> bool {
        let token = state.lanes[lane].claim.token;
        state.record(lane).would_answer(token, self.rules()) == Answer::InProgress
    }

    /// What may go wrong around a lane.
    fn lane_faults(&self, state: &State, lane: usize, actions: &mut Vec<Action>) {
        let here = &state.lanes[lane];
        if here.is_idle() || state.faults_left == 0 {
            return;
        }
        let blocked = here.phase == Phase::Claiming && self.is_blocked(state, lane);
        let asks = here.request(self.level).is_some() && !blocked;
        let quiet = state.late.is_none();
        let mut offer = |possible: bool, action: Action| {
            if possible && self.fault_of(state, action).is_some_and(|fault| self.may(state, fault)) {
                actions.push(action);
            }
        };
        offer(asks, Action::ReplyLost { lane });
        offer(asks && quiet, Action::RequestDelayed { lane });
        offer(here.holds_a_claim() && !here.overdue && quiet, Action::RenewalDelayed { lane });
        offer(here.holds_a_claim() && !here.overdue, Action::DeadlinePasses { lane });
        offer(here.phase == Phase::Running, Action::HandlerFails { lane });
        offer(here.phase == Phase::Claimed && !here.overdue, Action::ReleaseUnstarted { lane });
        offer(blocked, Action::Park { lane });
        offer(here.phase == Phase::Publishing, Action::ConfirmLost { lane });
        offer(here.phase == Phase::Acking && state.receipt_is_good(lane), Action::AckLost { lane });
    }

    fn broker_steps(&self, state: &State, actions: &mut Vec<Action>) {
        if self.may(state, Fault::TakeBack) {
            let held = (0..MESSAGES).filter(|index| matches!(state.messages[*index].at, Place::Held(_)));
            actions.extend(held.map(|message| Action::TakeBack { message }));
        }
        if self.may(state, Fault::Crash) {
            for worker in 0..=1 {
                let busy = |lane: &usize| self.worker_of[*lane] == worker && !state.lanes[*lane].is_idle();
                if !(0..LANES).any(|lane| busy(&lane)) {
                    continue;
                }
                actions.push(Action::Crash { worker, in_flight: None });
                let asks = |lane: &usize| busy(lane) && state.lanes[*lane].request(self.level).is_some();
                if state.late.is_none() {
                    let asking = (0..LANES).filter(asks);
                    actions.extend(asking.map(|lane| Action::Crash { worker, in_flight: Some(lane) }));
                }
            }
        }
    }

    fn store_steps(&self, state: &State, actions: &mut Vec<Action>) {
        if state.late.is_some() {
            actions.push(Action::LateRequestArrives);
        }
        for (key, record) in state.records.iter().enumerate() {
            if self.can_lapse(state, key) {
                actions.push(Action::LeaseLapses { key });
            }
            if record.stage != Stage::Absent && self.may(state, Fault::Forget) {
                actions.push(Action::Forget { key });
            }
            // The TTL is longer than any lease: whoever wrote the record knows by now that its lease is over.
            let ttl_can_end =
                matches!(record.stage, Stage::Completed | Stage::Dead) && !state.is_kept_alive(record.by);
            if ttl_can_end && self.may(state, Fault::Expire) {
                actions.push(Action::Expire { key });
            }
        }
    }

    /// A lease runs out by itself when nobody renews it. While its owner holds it, the owner's deadline passes first; while its
    /// owner does not know of it (the claim's reply was lost), it can run out as a fault.
    fn can_lapse(&self, state: &State, key: usize) -> bool {
        let record = &state.records[key];
        let runs = record.is_claimed() && !record.lapsed || record.short_lived;
        let mut keepers = state.lanes.iter().filter(|lane| lane.keeps_alive(record.by));
        runs && keepers.all(|lane| lane.phase == Phase::Claiming && self.may(state, Fault::Pause))
    }

    /// The fault an action is, if it is one.
    fn fault_of(&self, state: &State, action: Action) -> Option<Fault> {
        match action {
            Action::ReplyLost { .. } | Action::ConfirmLost { .. } => Some(Fault::LostReply),
            Action::AckLost { lane } if state.receipt_is_good(lane) => Some(Fault::LostReply),
            Action::RequestDelayed { .. } | Action::RenewalDelayed { .. } => Some(Fault::Delay),
            Action::DeadlinePasses { .. } => Some(Fault::Pause),
            Action::LeaseLapses { key } => state.is_kept_alive(state.records[key].by).then_some(Fault::Pause),
            Action::HandlerFails { .. } => Some(Fault::HandlerFails),
            Action::ReleaseUnstarted { lane } if !state.lanes[lane].overdue => Some(Fault::GiveBack),
            Action::Park { .. } => Some(Fault::GiveBack),
            Action::TakeBack { .. } => Some(Fault::TakeBack),
            Action::Crash { .. } => Some(Fault::Crash),
            Action::Forget { .. } => Some(Fault::Forget),
            Action::Expire { .. } => Some(Fault::Expire),
            _ => None,
        }
    }
}

/// What each action does.
impl Bounds {
    fn step(&self, state: &mut State, action: Action) {
        match action {
            Action::Receive { lane, message } => {
                let token = self.mint(state, lane);
                let key = state.messages[message].key;
                state.messages[message].at = Place::Held(lane as u8);
                let claim = crate::record::ClaimId { token, fence: 0 };
                state.lanes[lane] =
                    Lane { phase: Phase::Claiming, key, message: message as u8, claim, ..Lane::default() };
            }
            Action::Asked { lane } => {
                let request = self.request(state, lane);
                let answer = self.apply(state, state.lanes[lane].key, request);
                if state.lanes[lane].hear(answer, self.rules()) == Next::Return {
                    state.return_message(lane);
                }
            }
            Action::ReplyLost { lane } => {
                let request = self.request(state, lane);
                self.apply(state, state.lanes[lane].key, request);
                self.hear_nothing(state, lane);
            }
            Action::RequestDelayed { lane } => {
                self.leave_behind(state, lane, self.request(state, lane));
                self.hear_nothing(state, lane);
            }
            Action::RenewalDelayed { lane } => {
                self.leave_behind(state, lane, Request::Renew(state.lanes[lane].claim));
            }
            Action::LateRequestArrives => {
                if let Some(Late { key, request }) = state.late.take() {
                    self.apply(state, key, request);
                }
            }
            Action::HandlerStarts { lane } | Action::RunAgain { lane } => self.start_handler(state, lane),
            Action::HandlerSucceeds { lane } => self.finish_handler(state, lane),
            Action::HandlerFails { lane } | Action::HandlerCancelled { lane } => {
                state.lanes[lane].phase = Phase::Failing;
            }
            Action::ReleaseUnstarted { lane } => state.lanes[lane].phase = Phase::Releasing,
            Action::Park { lane } | Action::Abandon { lane } => state.return_message(lane),
            Action::Publish { lane } => {
                state.ghost(lane).has_letter = true;
                state.lanes[lane].published(self.rules());
            }
            Action::ConfirmLost { lane } => state.ghost(lane).has_letter = true,
            Action::Ack { lane } => {
                self.ack(state, lane);
                state.lanes[lane] = Lane::default();
            }
            Action::AckLost { lane } => state.return_message(lane),
            Action::DeadlinePasses { lane } => state.lanes[lane].overdue = true,
            Action::LeaseLapses { key } => state.records[key].lapse(self.rules()),
            Action::TakeBack { message } => state.messages[message].at = Place::Ready,
            Action::Crash { worker, in_flight } => self.crash(state, worker, in_flight),
            Action::Forget { key } => self.vanish(state, key),
            Action::Expire { key } => self.vanish(state, key),
        }
    }

    fn request(&self, state: &State, lane: usize) -> Request {
        state.lanes[lane].request(self.level).expect("only asking phases ask")
    }

    /// A token is fresh for every claim.
    fn mint(&self, state: &mut State, lane: usize) -> u8 {
        if self.has(Bug::TokenPerWorker) { self.worker_of[lane] + 1 } else { state.fresh_token() }
    }

    fn hear_nothing(&self, state: &mut State, lane: usize) {
        let fresh = if self.has(Bug::ClaimRetriedWithNewToken) { state.fresh_token() } else { 0 };
        state.lanes[lane].hear_nothing(self.level, fresh, self.rules());
    }

    fn leave_behind(&self, state: &mut State, lane: usize, request: Request) {
        state.late = Some(Late { key: state.lanes[lane].key, request });
    }

    /// The store applies one request; the properties look on.
    fn apply(&self, state: &mut State, key: u8, request: Request) -> Answer {
        let key = key as usize;
        let before = state.records[key];
        let fence = state.next_fence;
        let answer = state.records[key].apply(request, fence, self.rules());
        let after = state.records[key];

        let granted = after.by.fence == fence;
        state.next_fence += u8::from(granted);
        let overlaps = granted && state.has_a_run(key);
        let ghost = &mut state.ghosts[key];
        ghost.excused |= overlaps && (before.stage == Stage::Pending || ghost.claim_forgotten);
        ghost.was_completed |= after.stage == Stage::Completed;
        if matches!(request, Request::Commit(_)) && answer == Answer::Written {
            ghost.add_effect();
        }
        let of_another = match request {
            Request::Claim { token } => before.by.token != token && !before.lapsed,
            _ => before.by != request.claim(),
        };
        ghost.touched_by_another |= before.is_claimed() && of_another && after != before;
        answer
    }

    fn start_handler(&self, state: &mut State, lane: usize) {
        let here = state.lanes[lane];
        let record = state.record(lane);
        // After a commit in doubt the claim may turn out to be completed, by itself: the second run is then rolled back.
        let mine = record.is_live_claim_of(here.claim)
            || here.phase == Phase::InDoubt && record.is_completed_by(here.claim);
        state.lanes[lane].phase = Phase::Running;
        let ghost = state.ghost(lane);
        if ghost.claim_forgotten {
            ghost.excused |= !mine;
        } else {
            ghost.started_without_claim |= !mine;
        }
        // A commit in doubt runs again within the same attempt.
        ghost.runs_left -= i8::from(here.phase == Phase::Claimed);
    }

    fn finish_handler(&self, state: &mut State, lane: usize) {
        state.lanes[lane].phase = Phase::Completing;
        if self.level == Level::Deduplicated {
            state.ghost(lane).add_effect();
        }
        if self.has(Bug::AckBeforeComplete) {
            self.ack(state, lane);
        }
    }

    /// An ack with an old receipt may still delete the message: brokers differ, so it does here.
    fn ack(&self, state: &mut State, lane: usize) {
        state.message(lane).at = Place::Acked;
        let ghost = state.ghost(lane);
        ghost.acked_unsettled |= !ghost.was_completed && !ghost.has_letter;
    }

    fn crash(&self, state: &mut State, worker: u8, in_flight: Option<usize>) {
        if let Some(lane) = in_flight {
            self.leave_behind(state, lane, self.request(state, lane));
        }
        for lane in (0..LANES).filter(|lane| self.worker_of[*lane] == worker) {
            if state.has_uncompleted_effect(lane, self.level) {
                state.ghost(lane).excused = true;
            }
            state.return_message(lane);
        }
    }

    fn vanish(&self, state: &mut State, key: usize) {
        let record = std::mem::take(&mut state.records[key]);
        let unaware = record.stage == Stage::Pending || state.is_kept_alive(record.by);
        let ghost = &mut state.ghosts[key];
        ghost.claim_forgotten |= unaware;
        ghost.runs_left = Ghost::new(self.max_attempts).runs_left;
        if record.stage == Stage::Completed {
            ghost.effects = 0;
        }
    }
}
