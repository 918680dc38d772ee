//! The outside observer: what every worker did, and whether it was allowed to.
//!
//! It keeps its own idea of leases, from the store's answers alone. A key may run twice only where a lease ended, and a
//! lease may end only where something befell its worker.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onceward::Key;
use onceward_test_support::ledger::{Effect, Ledger, Produced};
use tokio::time::Instant;

/// A worker notices within this that a partition is leaving it.
const NOTICED: Duration = Duration::from_millis(1);

/// One run of a handler.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    id: String,
    worker: u64,
    fence: u64,
    start: Duration,
    end: Option<Duration>,
    effect: bool,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    fence: u64,
    worker: u64,
    until: Duration,
}

#[derive(Default)]
struct Notes {
    produced: Vec<Produced>,
    runs: Vec<Run>,
    /// Indices of runs, in the order of their effects.
    effects: Vec<usize>,
    held: BTreeMap<Key, Held>,
    ids: BTreeMap<Key, String>,
    /// How often a key may have run once more.
    excused: BTreeMap<String, usize>,
    /// When something befell a worker: from, until.
    befallen: BTreeMap<u64, Vec<(Duration, Duration)>>,
    /// Since when a partition has been leaving a worker.
    leaving: BTreeMap<(u64, u32), Duration>,
    violations: Vec<String>,
    trace: DefaultHasher,
    events: u64,
    story: Option<Vec<String>>,
}

/// Shared by everything that is watched.
#[derive(Clone)]
pub(crate) struct Witness {
    started: Instant,
    lease: Duration,
    notes: Arc<Mutex<Notes>>,
}

impl Witness {
    pub(crate) fn new(lease: Duration, tells: bool) -> Self {
        let notes = Notes { story: tells.then(Vec::new), ..Notes::default() };
        Self { started: Instant::now(), lease, notes: Arc::new(Mutex::new(notes)) }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes an event in the trace: what makes two runs of a seed the same.
    pub(crate) fn trace(&self, worker: u64, what: &str, detail: impl std::fmt::Debug) {
        let now = self.now();
        let mut notes = self.notes();
        let detail = format!("{detail:?}");
        (now, worker, what, &detail).hash(&mut notes.trace);
        notes.events += 1;
        if let Some(story) = &mut notes.story {
            story.push(format!("{:>9.3} s  worker {worker}  {what} {detail}", now.as_secs_f64()));
        }
    }

    pub(crate) fn violated(&self, what: impl Into<String>) {
        let now = self.now();
        self.notes().violations.push(format!("at {:.3} s: {}", now.as_secs_f64(), what.into()));
    }

    pub(crate) fn produced(&self, key: Key, produced: Produced) {
        let mut notes = self.notes();
        notes.ids.insert(key, produced.key.clone());
        notes.produced.push(produced);
    }

    // Runs.

    /// A run starts; answers its number, and how many of its key there were before.
    pub(crate) fn run_starts(&self, id: &str, worker: u64, partition: u32, fence: u64) -> (usize, usize) {
        self.trace(worker, "run starts", (id, fence));
        let start = self.now();
        let mut notes = self.notes();
        if notes.starts_while_leaving(id, worker, partition, fence, start) {
            drop(notes);
            self.violated(format!(
                "a run of {id} started though partition {partition} was leaving worker {worker}"
            ));
            notes = self.notes();
        }
        let before = notes.runs.iter().filter(|run| run.id == id).count();
        notes.runs.push(Run { id: id.to_owned(), worker, fence, start, end: None, effect: false });
        (notes.runs.len() - 1, before)
    }

    pub(crate) fn effect(&self, run: usize) {
        let mut notes = self.notes();
        notes.runs[run].effect = true;
        notes.effects.push(run);
    }

    /// A run has ended, if its process had not died before.
    pub(crate) fn run_ends(&self, run: usize, how: &str) {
        let now = self.now();
        let worker = {
            let mut notes = self.notes();
            let run = &mut notes.runs[run];
            if run.end.is_some() {
                return;
            }
            run.end = Some(now);
            run.worker
        };
        self.trace(worker, how, run);
    }

    /// Runs without an end end now: their process has died.
    pub(crate) fn runs_die(&self, worker: u64) {
        let now = self.now();
        let mut notes = self.notes();
        notes.runs.iter_mut().filter(|run| run.worker == worker && run.end.is_none()).for_each(|run| {
            run.end = Some(now);
        });
    }

    /// Something befalls `worker` from now on, for `lasts`.
    pub(crate) fn befalls(&self, worker: u64, lasts: Duration) {
        let now = self.now();
        self.notes().befallen.entry(worker).or_default().push((now, now.saturating_add(lasts)));
    }

    /// A partition is leaving a worker: nothing of it starts there any more.
    pub(crate) fn leaves(&self, worker: u64, partition: u32) {
        let now = self.now();
        self.notes().leaving.entry((worker, partition)).or_insert(now);
    }

    /// It has been assigned to the worker again.
    pub(crate) fn stays(&self, worker: u64, partition: u32) {
        self.notes().leaving.remove(&(worker, partition));
    }

    // Claims, as the store answers them.

    pub(crate) fn claimed(&self, worker: u64, key: Key, fence: u64, lease_left: Duration) {
        let now = self.now();
        let mut notes = self.notes();
        if notes.held.get(&key).is_some_and(|held| held.fence == fence) {
            return; // the same claim once more: its first reply was lost
        }
        let Some(before) = notes.held.insert(key, Held { fence, worker, until: now + lease_left }) else {
            return;
        };
        let id = notes.ids.get(&key).cloned().unwrap_or_default();
        drop(notes);
        if now < before.until {
            self.violated(format!(
                "I5: {id} was claimed by worker {worker} under a live lease of {}",
                before.worker
            ));
            return;
        }
        self.lapsed(&id, before, now);
    }

    /// A lease ended without a word of its owner. If its run goes on, or its effect has happened, the key may run
    /// once more; that is allowed only where something befell the owner.
    fn lapsed(&self, id: &str, held: Held, now: Duration) {
        let mut notes = self.notes();
        let matters = notes.runs.iter().any(|run| {
            run.id == id
                && run.fence == held.fence
                && (run.effect || run.end.is_none_or(|end| end > held.until))
        });
        if !matters {
            return;
        }
        let window = (held.until.saturating_sub(self.lease), now);
        let befallen = notes.befallen.get(&held.worker).is_some_and(|befallen| {
            befallen.iter().any(|(from, until)| *from <= window.1 && *until >= window.0)
        });
        *notes.excused.entry(id.to_owned()).or_default() += 1;
        drop(notes);
        if !befallen {
            self.violated(format!("a lease of {id} lapsed, and nothing had befallen worker {}", held.worker));
        }
    }

    pub(crate) fn renewed(&self, key: Key, fence: u64, lease: Duration) {
        let now = self.now();
        if let Some(held) = self.notes().held.get_mut(&key).filter(|held| held.fence == fence) {
            held.until = now + lease;
        }
    }

    /// The store has forgotten a claim. Two runs of the key may overlap if the effect of one is rolled back.
    pub(crate) fn forgotten(&self, key: Key, fence: u64, transactional: bool) {
        self.let_go(key, fence);
        self.trace(0, "forgotten", (key, fence));
        let mut notes = self.notes();
        if let Some(id) = notes.ids.get(&key).filter(|_| transactional).cloned() {
            *notes.excused.entry(id).or_default() += 1;
        }
    }

    /// The claim has said its last word.
    pub(crate) fn let_go(&self, key: Key, fence: u64) {
        let mut notes = self.notes();
        if notes.held.get(&key).is_some_and(|held| held.fence == fence) {
            notes.held.remove(&key);
        }
    }

    // The end.

    /// Checks I1 to I5. `committed`: the effects of the transactional handler, in order.
    pub(crate) fn judge(&self, dead: &[String], committed: Option<&[String]>, keeps_order: bool) {
        let notes = self.notes();
        let run_of = |run: &Run| Effect {
            key: run.id.clone(),
            start: micros(run.start),
            end: micros(run.end.unwrap_or(Duration::MAX)),
        };
        let effects = match committed {
            Some(committed) => {
                committed.iter().map(|id| Effect { key: id.clone(), start: 0, end: 0 }).collect()
            }
            None => notes.effects.iter().map(|run| run_of(&notes.runs[*run])).collect(),
        };
        let ledger = Ledger { produced: notes.produced.clone(), effects, dead: dead.to_vec() };
        let runs = Ledger { effects: notes.runs.iter().map(run_of).collect(), ..Ledger::default() };
        let excuse = |id: &str| notes.excused.get(id).copied().unwrap_or_default();
        let mut found: Vec<String> = Vec::new();
        found.extend(ledger.lost().iter().map(|violation| format!("I1: {violation:?}")));
        for violation in ledger.doubled() {
            let onceward_test_support::ledger::Violation::Doubled(id, count) = &violation else { continue };
            if committed.is_some() || *count > 1 + excuse(id) {
                found.push(format!("I2: {violation:?}, excused {} times", excuse(id)));
            }
        }
        found.extend(ledger.unasked().iter().map(|violation| format!("I3: {violation:?}")));
        if keeps_order {
            found.extend(ledger.out_of_order().iter().map(|violation| format!("I4: {violation:?}")));
        }
        for violation in runs.overlapping() {
            let onceward_test_support::ledger::Violation::Overlapping(id) = &violation else { continue };
            if excuse(id) == 0 {
                found.push(format!("I5: {violation:?}"));
            }
        }
        let dead: BTreeSet<_> = dead.iter().collect();
        let both =
            ledger.effects.iter().filter(|effect| dead.contains(&effect.key) && excuse(&effect.key) == 0);
        found.extend(both.map(|effect| format!("{} has an effect and a dead letter", effect.key)));
        drop(notes);
        found.into_iter().for_each(|violation| self.violated(violation));
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let notes = self.notes();
        Outcome {
            violations: notes.violations.clone(),
            trace: notes.trace.finish(),
            events: notes.events,
            runs: notes.runs.len(),
            effects: notes.effects.len(),
            excused: notes.excused.values().sum(),
            simulated: self.now(),
            story: notes.story.clone().unwrap_or_default(),
            ..Outcome::default()
        }
    }
}

impl Notes {
    /// True if a run that starts now had no right to: its partition was leaving. A worker that was paused in between is
    /// notified of it later, and what had begun before under the same claim may be repeated after a rollback.
    fn starts_while_leaving(&self, id: &str, worker: u64, partition: u32, fence: u64, now: Duration) -> bool {
        let Some(since) = self.leaving.get(&(worker, partition)).copied() else { return false };
        let stood_still = self
            .befallen
            .get(&worker)
            .is_some_and(|befallen| befallen.iter().any(|(from, until)| *from <= now && *until >= since));
        let goes_on =
            |run: &Run| run.id == id && run.worker == worker && run.fence == fence && run.start <= since;
        now > since + NOTICED && !stood_still && !self.runs.iter().any(goes_on)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What one seed came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) runs: usize,
    pub(crate) effects: usize,
    pub(crate) excused: usize,
    pub(crate) dead: usize,
    pub(crate) duplicates: u64,
    pub(crate) deaths: usize,
    pub(crate) suspected: u64,
    pub(crate) simulated: Duration,
    pub(crate) story: Vec<String>,
}
