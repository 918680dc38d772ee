//! The model: its bounds, its faults and its actions. `enabled.rs` decides when an action can happen, `steps.rs` applies it.
//!
//! A *fault* costs one of `Bounds::faults`; everything else is free and, between faults, always moves forward. So every path
//! ends, and a state in which nothing can happen must be a settled one.

use stateright::{Model, Property};

use crate::bugs::Bug;
use crate::properties;
use crate::record::{Record, Rules};
use crate::state::{Ghost, KEYS, LANES, MESSAGES, Message, Place, State};
use crate::worker::{Lane, Level};

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
    /// The handler is not available: the verdict `Unavailable`.
    HandlerUnavailable,
    /// A worker gives an unstarted message back: shutdown, park.
    GiveBack,
    /// A record vanishes: operator's forget, failover to a store that lags.
    Forget,
    /// The TTL of a completed or dead key ends.
    Expire,
    /// The store crashes and restarts: what it has not synced is lost, and what is on its way to it.
    StoreCrash,
}

impl Fault {
    pub(crate) const ALL: &[Fault] = &[
        Fault::Crash,
        Fault::Pause,
        Fault::LostReply,
        Fault::Delay,
        Fault::TakeBack,
        Fault::HandlerFails,
        Fault::HandlerUnavailable,
        Fault::GiveBack,
        Fault::Forget,
        Fault::Expire,
        Fault::StoreCrash,
    ];

    /// Faults that can make a claim lapse. Of lost replies alone none may lapse.
    fn disturbs(self) -> bool {
        let crashes = matches!(self, Fault::Crash | Fault::StoreCrash);
        crashes || matches!(self, Fault::Pause | Fault::Delay | Fault::Forget | Fault::Expire)
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

    pub(crate) fn rules(&self) -> Rules {
        Rules { max_attempts: self.max_attempts, bug: self.bug }
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
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
    /// The request in flight is applied; its reply is lost.
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
    /// The run found the handler unavailable: it had no effect, and was not the message's fault.
    HandlerUnavailable {
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
    /// A commit in doubt: the claim is repeated with the same token, and its answer resolves the doubt.
    AskAgain {
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
    StoreCrash,
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
