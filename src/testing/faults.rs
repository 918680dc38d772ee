//! Plans of injected faults, seeded or listed one by one: [`Faults`], [`Fault`], [`FaultPlan`].

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::process::Process;
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// A call that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs)] // the methods of `Store`, `TransactionalStore`, `Publisher`, `Consumer` and `Acker`
pub enum Operation {
    Check,
    Claim,
    Complete,
    Renew,
    Fail,
    Bury,
    Release,
    Redrive,
    Forget,
    Inspect,
    List,
    Stats,
    Purge,
    Begin,
    Keep,
    Undo,
    Commit,
    Rollback,
    Publish,
    Receive,
    Settle,
    Extend,
}

impl Operation {
    const fn attempted(self) -> &'static str {
        match self {
            Self::Check => "check the store",
            Self::Claim => "claim keys",
            Self::Complete => "complete keys",
            Self::Renew => "renew leases",
            Self::Fail => "write failed runs",
            Self::Bury => "mark keys dead",
            Self::Release => "release claims",
            Self::Redrive => "redrive keys",
            Self::Forget => "forget keys",
            Self::Inspect => "inspect a key",
            Self::List => "list keys",
            Self::Stats => "count keys",
            Self::Purge => "purge keys",
            Self::Begin => "begin a transaction",
            Self::Keep => "keep an effect",
            Self::Undo => "undo an effect",
            Self::Commit => "commit a transaction",
            Self::Rollback => "roll a transaction back",
            Self::Publish => "publish messages",
            Self::Receive => "receive",
            Self::Settle => "settle deliveries",
            Self::Extend => "extend deliveries",
        }
    }
}

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing is applied; the answer is an error of the kind `Unavailable`.
    Refused,
    /// Nothing is applied; the answer is an error of the kind `Denied`: asking again is useless.
    Denied,
    /// Nothing is applied; the answer is an error of this kind.
    Failed(ErrorKind),
    /// Everything is applied; the answer is an error of the kind `Timeout`.
    ReplyLost,
    /// Nothing is applied and no answer ever comes.
    Hangs,
    /// Everything is applied and no answer ever comes.
    ReplyHangs,
    /// Applied after this long.
    Late(Duration),
    /// Applied at once, answered after this long.
    ReplyLate(Duration),
}

/// Chances per call, from 0 to 1, and latencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// The chance of [`Fault::Refused`].
    pub refused: f64,
    /// The chance of [`Fault::ReplyLost`].
    pub reply_lost: f64,
    /// The longest time until a call is applied; drawn separately for each.
    pub latency: Duration,
    /// The longest time from there to the answer.
    pub reply_latency: Duration,
    /// Decides all chances.
    pub seed: u64,
}

impl Faults {
    /// No faults and no latency.
    pub const NONE: Self = Self {
        refused: 0.0,
        reply_lost: 0.0,
        latency: Duration::ZERO,
        reply_latency: Duration::ZERO,
        seed: 0,
    };
}

/// One call, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it was applied or refused, since the plan was made.
    pub at: Duration,
    /// The operation that was called.
    pub operation: Operation,
    /// The keys, in the order of the batch.
    pub keys: Vec<Key>,
    /// The fault.
    pub fault: Option<Fault>,
    /// The answers as `Debug` prints them, whether or not they reached the caller; empty if nothing was applied.
    pub answers: Vec<String>,
}

/// Decides what goes wrong, counts calls, and keeps a record of them if asked to.
#[derive(Debug)]
pub struct FaultPlan {
    started: Instant,
    state: Mutex<FaultState>,
    down: AtomicBool,
    process: Process,
}

#[derive(Debug)]
struct FaultState {
    faults: Faults,
    rng: fastrand::Rng,
    next: HashMap<Operation, VecDeque<Fault>>,
    calls: HashMap<Operation, u64>,
    corrupt: BTreeSet<Key>,
    cut_off: Option<fn(&Key) -> bool>,
    met_own_call: bool,
    stuck: BTreeSet<u64>,
    refused: HashMap<Operation, ErrorKind>,
    record: Option<Vec<Call>>,
}

impl FaultPlan {
    pub(super) fn new(faults: Faults, process: &Process) -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::new(FaultState {
                faults,
                rng: fastrand::Rng::with_seed(faults.seed),
                next: HashMap::new(),
                calls: HashMap::new(),
                corrupt: BTreeSet::new(),
                cut_off: None,
                met_own_call: false,
                stuck: BTreeSet::new(),
                refused: HashMap::new(),
                record: None,
            }),
            down: AtomicBool::new(false),
            process: process.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.state.lock()
    }

    /// Draws from these chances from now on.
    pub fn set(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.rng = fastrand::Rng::with_seed(faults.seed);
    }

    /// Lets the next call of `operation` that nothing else is planned for go wrong in this way.
    pub fn next(&self, operation: Operation, fault: Fault) {
        self.state().next.entry(operation).or_default().push_back(fault);
    }

    /// Refuses every call until [`come_up`](Self::come_up).
    pub fn go_down(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    /// Ends an outage.
    pub fn come_up(&self) {
        self.down.store(false, Ordering::Relaxed);
    }

    /// Lets every call of `operation` fail with an error of `kind`, without applying anything, until
    /// [`accept`](Self::accept).
    pub fn refuse(&self, operation: Operation, kind: ErrorKind) {
        self.state().refused.insert(operation, kind);
    }

    /// Undoes [`refuse`](Self::refuse).
    pub fn accept(&self, operation: Operation) {
        self.state().refused.remove(&operation);
    }

    fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// The process that makes the calls.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Answers items of this key with an error of the kind `Corrupt` from now on, and applies nothing to it.
    pub fn corrupt(&self, key: Key) {
        self.state().corrupt.insert(key);
    }

    /// Undoes [`corrupt`](Self::corrupt).
    pub fn mend(&self, key: &Key) {
        self.state().corrupt.remove(key);
    }

    /// Answers items of these keys with an error of the kind `Unavailable` from now on, as if a node of a cluster were out
    /// of reach, and applies nothing to them. `None` ends it.
    pub fn cut_off(&self, keys: Option<fn(&Key) -> bool>) {
        self.state().cut_off = keys;
    }

    /// Applies the next claim call that nothing else is planned for, and answers its claims as in progress: it met its own
    /// first call, which was still under way.
    pub fn meets_its_own_call(&self) {
        self.state().met_own_call = true;
    }

    pub(super) fn take_own_call(&self) -> bool {
        std::mem::take(&mut self.state().met_own_call)
    }

    /// Refuses, each time, to settle the delivery with this number in its tag.
    pub fn fail_item(&self, number: u64) {
        self.state().stuck.insert(number);
    }

    /// Undoes [`fail_item`](Self::fail_item).
    pub fn mend_items(&self) {
        self.state().stuck.clear();
    }

    pub(super) fn fails_item(&self, number: u64) -> bool {
        self.state().stuck.contains(&number)
    }

    /// How often `operation` was called.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().calls.get(&operation).copied().unwrap_or_default()
    }

    /// Keeps a record of calls from now on.
    pub fn record(&self) {
        self.state().record.get_or_insert_default();
    }

    /// The calls recorded so far, in the order in which they were applied.
    pub fn recorded(&self) -> Vec<Call> {
        self.state().record.clone().unwrap_or_default()
    }

    /// Why items of this key fail, if they do.
    pub(super) fn fails_key(&self, key: &Key) -> Option<ErrorKind> {
        let state = self.state();
        if state.cut_off.is_some_and(|cut_off| cut_off(key)) {
            return Some(ErrorKind::Unavailable);
        }
        (!state.corrupt.is_empty() && state.corrupt.contains(key)).then_some(ErrorKind::Corrupt)
    }

    /// The plan for this call: the fault, and how late application and answer are.
    fn draw(&self, operation: Operation) -> (Option<Fault>, Duration, Duration) {
        let mut state = self.state();
        *state.calls.entry(operation).or_default() += 1;
        if self.is_down() {
            return (Some(Fault::Refused), Duration::ZERO, Duration::ZERO);
        }
        if let Some(kind) = state.refused.get(&operation) {
            return (Some(Fault::Failed(*kind)), Duration::ZERO, Duration::ZERO);
        }
        let planned = state.next.get_mut(&operation).and_then(VecDeque::pop_front);
        let faults = state.faults;
        let mut chance = |chance: f64| chance > 0.0 && state.rng.f64() < chance;
        let (refused, lost) = (chance(faults.refused), chance(faults.reply_lost));
        let mut up_to = |longest: Duration| {
            if longest.is_zero() { longest } else { longest.mul_f64(state.rng.f64()) }
        };
        let (late, reply_late) = (up_to(faults.latency), up_to(faults.reply_latency));
        match planned {
            Some(Fault::Late(by)) => (planned, by, Duration::ZERO),
            Some(Fault::ReplyLate(by)) => (planned, Duration::ZERO, by),
            Some(_) => (planned, late, reply_late),
            None if refused => (Some(Fault::Refused), late, reply_late),
            None if lost => (Some(Fault::ReplyLost), late, reply_late),
            None => (None, late, reply_late),
        }
    }

    /// Makes one call, with what the plan has in store for it.
    ///
    /// # Errors
    /// As the plan decides.
    pub(super) async fn call<T>(
        &self,
        operation: Operation,
        keys: impl Fn() -> Vec<Key>,
        answers: impl Fn(&T) -> Vec<String>,
        apply: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let (fault, late, reply_late) = self.draw(operation);
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        let note = |fault, answers| {
            if let Some(record) = &mut self.state().record {
                record.push(Call { at: self.started.elapsed(), operation, keys: keys(), fault, answers });
            }
        };
        self.process.runs().await;
        let refused = |kind| Error::new(kind, operation.attempted(), "a seeded fault");
        // An outage that began while the call was under way refuses it as well.
        let fault = if self.is_down() { Some(Fault::Refused) } else { fault };
        let applied = match fault {
            Some(Fault::Refused | Fault::Denied | Fault::Failed(_)) => {
                note(fault, Vec::new());
                None
            }
            Some(Fault::Hangs) => {
                note(fault, Vec::new());
                return std::future::pending().await;
            }
            _ => {
                let applied = apply.await;
                note(fault, answers(&applied));
                Some(applied)
            }
        };
        if !reply_late.is_zero() {
            tokio::time::sleep(reply_late).await;
        }
        self.process.runs().await;
        match (fault, applied) {
            (Some(Fault::ReplyHangs), _) => std::future::pending().await,
            (Some(Fault::ReplyLost), _) => Err(refused(ErrorKind::Timeout)),
            (_, Some(applied)) => Ok(applied),
            (Some(Fault::Failed(kind)), None) => Err(refused(kind)),
            (Some(Fault::Denied), None) => Err(refused(ErrorKind::Denied)),
            (_, None) => Err(refused(ErrorKind::Unavailable)),
        }
    }
}
