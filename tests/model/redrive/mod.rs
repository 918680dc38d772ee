//! Dead letters and their redrive: a smaller model of one key, one worker and one operator.
//!
//! The claim protocol itself is `model.rs`'s subject; here a claim is held by the one worker and is free again when it dies,
//! an attempt is one run, and the effect commits with its completion. Free steps end because failures and faults do: the
//! operator retries until no letter is left, so in the end the effect must have happened.

use stateright::{Model, Property};

use crate::record::Stage;

mod checks;

pub(crate) use checks::redrives;

/// Generations that the bounds can reach, and one more.
pub(crate) const GENERATIONS: usize = 8;

/// One rule broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// The letter is deleted before its message is published.
    LetterDeletedFirst,
    /// A redrive that finds the key open and unfinished takes it for done.
    UnfinishedTakenForDone,
    /// A delivery that has dead-letter headers is taken for a late copy of the dead message.
    HeadersIgnored,
    /// A late copy of a dead message opens it again.
    LateCopyReopens,
    /// Redrive does not look at the state: a completed key is opened again.
    CompletedReopened,
    /// A terminal failure whose burial was not written stays closed to a newer generation.
    UnburiedStaysClosed,
}

#[derive(Clone, Debug)]
pub(crate) struct Redrives {
    pub(crate) copies: u8,
    pub(crate) failures: u8,
    pub(crate) faults: u8,
    pub(crate) bug: Option<Bug>,
    pub(crate) properties: fn() -> Vec<Property<Redrives>>,
}

/// The record, as far as redrives go. `Absent` in generation 0 is an unknown key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Record {
    pub(crate) stage: Stage,
    pub(crate) generation: u8,
}

/// What a claim finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claimed {
    Run,
    DeadLetter,
    /// Completed, or dead and not redriven by this delivery.
    Ack,
}

/// What a redrive finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Open in this generation: publish the message with it.
    Open(u8),
    Resolved,
    NotDead,
}

impl Record {
    /// A delivery of `generation` claims the key; no other claim is live.
    pub(crate) fn claim(&mut self, generation: u8, bug: Option<Bug>) -> Claimed {
        // A generation beyond the next belongs to no letter of this record, unless nothing is known.
        let next = if self.is_unknown() { generation } else { self.generation + 1 };
        let raises = generation == next;
        let redrives = raises && bug != Some(Bug::HeadersIgnored);
        match self.stage {
            Stage::Completed => return Claimed::Ack,
            // More than a copy of what died: the pipeline dead-letters it again.
            Stage::Dead if generation > next => return Claimed::DeadLetter,
            Stage::Dead if !redrives && bug != Some(Bug::LateCopyReopens) => return Claimed::Ack,
            // Its letter was published and the burial was not written: a redrive reopens it.
            Stage::Terminal if !redrives || bug == Some(Bug::UnburiedStaysClosed) => {
                self.raise_if(raises, generation);
                return Claimed::DeadLetter;
            }
            Stage::Absent | Stage::Pending | Stage::Failed | Stage::Terminal | Stage::Dead => {}
        }
        self.raise_if(raises, generation);
        self.stage = Stage::Pending;
        Claimed::Run
    }

    fn raise_if(&mut self, raises: bool, generation: u8) {
        if raises {
            self.generation = generation;
        }
    }

    /// Compare-and-set dead(g) → absent(g + 1). A terminal failure counts as dead unless it is `held`, that is, its claim's
    /// lease is live.
    pub(crate) fn redrive(&mut self, letter: u8, held: bool, bug: Option<Bug>) -> Found {
        let next = letter + 1;
        match self.stage {
            Stage::Completed if bug != Some(Bug::CompletedReopened) => Found::Resolved,
            Stage::Dead | Stage::Completed if self.generation == letter => {
                *self = Record { stage: Stage::Absent, generation: next };
                Found::Open(next)
            }
            Stage::Terminal if self.generation == letter && !held => {
                *self = Record { stage: Stage::Absent, generation: next };
                Found::Open(next)
            }
            _ if self.generation <= letter => Found::NotDead,
            // What follows it has died in turn and has a letter of its own.
            _ if self.generation > next || self.stage == Stage::Dead => Found::Resolved,
            _ if bug == Some(Bug::UnfinishedTakenForDone) => Found::Resolved,
            _ => Found::Open(next),
        }
    }

    fn is_unknown(&self) -> bool {
        *self == Record { stage: Stage::Absent, generation: 0 }
    }
}

/// The worker, with the generation its delivery carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Worker {
    Idle,
    Claiming(u8),
    Running(u8),
    Publishing(u8),
    MarkingDead(u8),
    Acking(u8),
}

/// The operator's tool, with its letter's generation and the one to publish.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Operator {
    Idle,
    Publishing { letter: u8, generation: u8 },
    Deleting { letter: u8, then_publish: Option<u8> },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) record: Record,
    worker: Worker,
    operator: Operator,
    /// Messages waiting at the broker, by the generation they carry.
    queue: [u8; GENERATIONS],
    /// Letters in the dead-letter queue, by the generation that died.
    letters: [u8; GENERATIONS],
    failures_left: u8,
    faults_left: u8,
    effects: u8,
    revived: bool,
    /// A redriven letter was dead-lettered without a run.
    refused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Receive {
        generation: usize,
    },
    Claim,
    /// The effect and its completion, in one transaction.
    Succeed,
    /// The only attempt fails: `failed(terminal)` is written.
    Fail,
    PublishLetter,
    MarkDead,
    /// The burial is given up, and the confirm alone allows the ack. A fault.
    LeaveUnburied,
    Ack,
    /// The worker dies; its message is redelivered and its claim lapses. A fault.
    WorkerCrash,
    /// The operator asks the store to open the letter's key.
    Redrive {
        letter: usize,
    },
    PublishMessage,
    DeleteLetter,
    /// The operator's tool dies. A fault.
    OperatorCrash,
    /// A broker's own redrive, a shovel or a hand moves the letter back, headers and all.
    Move {
        letter: usize,
    },
    /// A shovel that dies between its publish and its delete. A fault.
    Copy {
        letter: usize,
    },
    /// The TTL of a dead or a reopened key ends. A fault.
    Expire,
}

impl Model for Redrives {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut queue = [0; GENERATIONS];
        queue[0] = self.copies;
        vec![State {
            record: Record { stage: Stage::Absent, generation: 0 },
            worker: Worker::Idle,
            operator: Operator::Idle,
            queue,
            letters: [0; GENERATIONS],
            failures_left: self.failures,
            faults_left: self.faults,
            effects: 0,
            revived: false,
            refused: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.worker {
            Worker::Idle => {
                let waiting = (0..GENERATIONS).filter(|generation| state.queue[*generation] > 0);
                actions.extend(waiting.map(|generation| Action::Receive { generation }));
            }
            Worker::Claiming(_) => actions.push(Action::Claim),
            Worker::Running(_) => actions.push(Action::Succeed),
            Worker::Publishing(_) => actions.push(Action::PublishLetter),
            Worker::MarkingDead(_) => actions.push(Action::MarkDead),
            Worker::Acking(_) => actions.push(Action::Ack),
        }
        let fails = matches!(state.worker, Worker::Running(_)) && state.failures_left > 0;
        actions.extend(fails.then_some(Action::Fail));
        let letters = (0..GENERATIONS).filter(|letter| state.letters[*letter] > 0);
        match state.operator {
            Operator::Idle => {
                // Too early is no step: the operator retries.
                let ready = |letter: &usize| state.redrive(*letter as u8, self.bug).1 != Found::NotDead;
                actions.extend(letters.clone().filter(ready).map(|letter| Action::Redrive { letter }));
                actions.extend(letters.clone().map(|letter| Action::Move { letter }));
            }
            Operator::Publishing { .. } => actions.push(Action::PublishMessage),
            Operator::Deleting { .. } => actions.push(Action::DeleteLetter),
        }
        if state.faults_left > 0 {
            actions.extend((state.worker != Worker::Idle).then_some(Action::WorkerCrash));
            actions.extend((state.operator != Operator::Idle).then_some(Action::OperatorCrash));
            let burying = matches!(state.worker, Worker::MarkingDead(_));
            actions.extend(burying.then_some(Action::LeaveUnburied));
            actions.extend(letters.map(|letter| Action::Copy { letter }));
            let opened = state.record.stage == Stage::Absent && !state.record.is_unknown();
            actions.extend((opened || state.record.stage == Stage::Dead).then_some(Action::Expire));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        state.step(action, self.bug);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        (self.properties)()
    }
}

impl State {
    /// The record afterwards, and what the operator does. A key that is no longer known is opened by its message.
    fn redrive(&self, letter: u8, bug: Option<Bug>) -> (Record, Found) {
        let mut record = self.record;
        let held = matches!(self.worker, Worker::Publishing(_) | Worker::MarkingDead(_));
        let found = record.redrive(letter, held, bug);
        let unknown = found == Found::NotDead && record.is_unknown();
        (record, if unknown { Found::Open(letter + 1) } else { found })
    }

    fn step(&mut self, action: Action, bug: Option<Bug>) {
        let carried = self.worker.carries();
        match action {
            Action::Receive { generation } => {
                self.queue[generation] -= 1;
                self.worker = Worker::Claiming(generation as u8);
            }
            Action::Claim => {
                let before = self.record;
                let claimed = self.record.claim(carried, bug);
                self.revived |=
                    claimed == Claimed::Run && before.stage == Stage::Dead && carried <= before.generation;
                self.refused |= claimed == Claimed::DeadLetter && carried == before.generation + 1;
                self.worker = match claimed {
                    Claimed::Run => Worker::Running(carried),
                    Claimed::DeadLetter => Worker::Publishing(carried),
                    Claimed::Ack => Worker::Acking(carried),
                };
            }
            Action::Succeed => {
                self.effects += 1;
                self.record.stage = Stage::Completed;
                self.worker = Worker::Acking(carried);
            }
            Action::Fail => {
                self.failures_left -= 1;
                self.record.stage = Stage::Terminal;
                self.worker = Worker::Publishing(carried);
            }
            Action::PublishLetter => {
                self.letters[self.record.generation as usize] += 1;
                self.worker = Worker::MarkingDead(carried);
            }
            Action::MarkDead => {
                self.record.stage = Stage::Dead;
                self.worker = Worker::Acking(carried);
            }
            Action::LeaveUnburied => {
                self.faults_left -= 1;
                self.worker = Worker::Acking(carried);
            }
            Action::Ack => self.worker = Worker::Idle,
            Action::WorkerCrash => {
                self.faults_left -= 1;
                self.queue[carried as usize] += 1;
                self.worker = Worker::Idle;
            }
            Action::Redrive { letter } => self.start_redrive(letter as u8, bug),
            Action::PublishMessage => {
                if let Operator::Publishing { letter, generation } = self.operator {
                    self.queue[generation as usize] += 1;
                    let first = bug == Some(Bug::LetterDeletedFirst);
                    let delete = Operator::Deleting { letter, then_publish: None };
                    self.operator = if first { Operator::Idle } else { delete };
                }
            }
            Action::DeleteLetter => {
                if let Operator::Deleting { letter, then_publish } = self.operator {
                    // It may have been moved meanwhile.
                    self.letters[letter as usize] = self.letters[letter as usize].saturating_sub(1);
                    let publish = then_publish.map(|generation| Operator::Publishing { letter, generation });
                    self.operator = publish.unwrap_or(Operator::Idle);
                }
            }
            Action::OperatorCrash => {
                self.faults_left -= 1;
                self.operator = Operator::Idle;
            }
            Action::Move { letter } => {
                self.letters[letter] -= 1;
                self.queue[letter + 1] += 1;
            }
            Action::Copy { letter } => {
                self.faults_left -= 1;
                self.queue[letter + 1] += 1;
            }
            Action::Expire => {
                self.faults_left -= 1;
                self.record = Record { stage: Stage::Absent, generation: 0 };
            }
        }
    }

    fn start_redrive(&mut self, letter: u8, bug: Option<Bug>) {
        let (record, found) = self.redrive(letter, bug);
        self.record = record;
        self.operator = match found {
            Found::Open(generation) if bug == Some(Bug::LetterDeletedFirst) => {
                Operator::Deleting { letter, then_publish: Some(generation) }
            }
            Found::Open(generation) => Operator::Publishing { letter, generation },
            Found::Resolved => Operator::Deleting { letter, then_publish: None },
            Found::NotDead => Operator::Idle,
        };
    }

    fn is_at_the_broker(&self) -> bool {
        let some = |counts: &[u8]| counts.iter().any(|count| *count > 0);
        some(&self.queue) || some(&self.letters) || self.worker != Worker::Idle
    }
}

impl Worker {
    /// The generation of the delivery in hand; 0 without a delivery.
    fn carries(self) -> u8 {
        match self {
            Worker::Idle => 0,
            Worker::Claiming(generation)
            | Worker::Running(generation)
            | Worker::Publishing(generation)
            | Worker::MarkingDead(generation)
            | Worker::Acking(generation) => generation,
        }
    }
}
