//! Decides which deliveries start, and when: lanes, copies, retries, limits and pauses.

mod drain;
mod timers;

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

pub(crate) use drain::Drained;
use timers::Timers;

use super::config::{Mode, OnStoreDown};
use super::intake::Gate;
use super::process::process;
use super::runner::Runner;
use super::shared::Shared;
use super::work::{Verdict, Work};
use crate::delivery::Settlement;
use crate::key::{Fingerprint, Key};
use crate::telemetry::Counter;

/// What the dispatcher is told.
pub(crate) enum Event {
    /// Deliveries came in.
    Arrived(Vec<Work>),
    /// The source is at its end.
    End,
    /// The source is idle; only sent if the pipeline shall stop then.
    Idle,
    /// A round's claims were answered, or not: what the store's trouble is, if it was asked at all.
    Claimed { store: Option<Result<(), String>> },
    /// So many runs have ended: their slots are free.
    Finished(usize),
    /// Deliveries were settled, or are to be tried again.
    Settled(Vec<Report>),
    /// So many settlements have reached the broker, or were given up.
    Flushed(usize),
}

/// What became of a delivery.
pub(crate) struct Report {
    pub(crate) key: Option<Key>,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) generation: u32,
    pub(crate) lane: Option<u64>,
    pub(crate) size: usize,
    pub(crate) verdict: Verdict,
    pub(crate) again: Option<Work>,
}

/// Rounds whose claims are under way. While both are, what becomes ready gathers into the next round.
const CLAIMING_ROUNDS: usize = 2;

/// What a handler may ask for has no limit; what a clock can add has.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Owns every delivery that is not in a round. It runs in one task and takes no locks.
pub(crate) struct Dispatcher<R> {
    shared: Arc<Shared<R>>,
    gate: Arc<Gate>,
    ready: VecDeque<Work>,
    /// The keys that a delivery of this process speaks for, with the copies that wait for its outcome.
    leaders: HashMap<Key, Vec<Work>>,
    /// Lanes in which a delivery is under way, with those that wait behind it.
    lanes: HashMap<u64, VecDeque<Work>>,
    timers: Timers,
    rounds: JoinSet<()>,
    claiming: usize,
    running: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    /// Settlements on their way to the broker: an acker that is stuck must not let them pile up. Below zero while the
    /// broker was faster than the report.
    unflushed: isize,
    panicked: bool,
    store_failures: u32,
    store_retry_at: Option<Instant>,
    at_end: bool,
    idle: bool,
}

impl<R: Runner> Dispatcher<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>, gate: Arc<Gate>) -> Self {
        Self {
            shared,
            gate,
            ready: VecDeque::new(),
            leaders: HashMap::new(),
            lanes: HashMap::new(),
            timers: Timers::default(),
            rounds: JoinSet::new(),
            claiming: 0,
            running: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            unflushed: 0,
            panicked: false,
            store_failures: 0,
            store_retry_at: None,
            at_end: false,
            idle: false,
        }
    }

    /// Dispatches until the source is at its end and everything is settled, or until a drain is asked for and done.
    pub(crate) async fn run(mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Drained {
        let shared = Arc::clone(&self.shared);
        let mut batch = Vec::with_capacity(64);
        while !self.is_done() {
            self.start_rounds();
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                () = shared.draining.cancelled() => return self.drain(events).await,
                _ = events.recv_many(&mut batch, 64) => batch.drain(..).for_each(|event| self.take(event)),
                Some(joined) = self.rounds.join_next() => self.note_end(joined),
                () = sleep_until(wake_at) => {}
            }
            self.fire_timers();
            self.publish_gauges();
        }
        self.abandon_unstarted();
        Drained::Wholly
    }

    /// A round that panics is a fault of this crate or of an adapter. Its deliveries go back to the broker; the run ends,
    /// since what it knew of lanes and slots is wrong now.
    fn note_end(&mut self, joined: Result<(), JoinError>) {
        if let Err(error) = joined
            && error.is_panic()
        {
            tracing::error!(%error, "a round panicked: the run ends, nothing of the round is acked");
            self.panicked = true;
            self.shared.draining.cancel();
        }
    }

    fn is_done(&self) -> bool {
        (self.at_end || self.idle) && self.is_quiet()
    }

    /// True if nothing is in flight, or only what a policy keeps in the source and what waits behind it: that would
    /// keep the run from ending.
    fn is_quiet(&self) -> bool {
        let only_parked = || {
            let held = self.timers.len()
                + self.leaders.values().map(Vec::len).sum::<usize>()
                + self.lanes.values().map(VecDeque::len).sum::<usize>();
            held == self.in_flight && self.timers.all().all(|work| work.parked)
        };
        self.in_flight == 0 || only_parked()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Arrived(works) => {
                self.idle = false;
                self.gate.seen();
                works.into_iter().for_each(|work| self.arrive(work));
            }
            Event::End => self.at_end = true,
            // What goes back to the source while it is asked would not be seen: it must be there by then.
            Event::Idle => self.idle = self.is_quiet() && self.unflushed <= 0,
            Event::Claimed { store } => {
                self.claiming -= 1;
                store.into_iter().for_each(|answered| self.note_store(answered));
            }
            Event::Finished(count) => self.running -= count,
            Event::Settled(reports) => self.conclude_all(reports),
            Event::Flushed(count) => self.unflushed -= count.cast_signed(),
        }
    }

    fn arrive(&mut self, work: Work) {
        self.in_flight += 1;
        self.in_flight_bytes += work.size;
        match work.lane.map(|lane| self.lanes.entry(lane)) {
            Some(Entry::Occupied(mut waiting)) => waiting.get_mut().push_back(work),
            Some(Entry::Vacant(lane)) => {
                lane.insert(VecDeque::new());
                self.ready.push_back(work);
            }
            None => self.ready.push_back(work),
        }
    }

    /// Starts rounds as long as there are deliveries, free slots and claims to spare.
    fn start_rounds(&mut self) {
        let (max_batch, concurrency) = (self.shared.config.max_batch, self.shared.config.concurrency);
        while !self.ready.is_empty() && self.running < concurrency {
            let probing = self.store_retry_at.is_some();
            if self.claiming >= if probing { 1 } else { CLAIMING_ROUNDS }
                || self.store_retry_at.is_some_and(|at| Instant::now() < at)
            {
                return;
            }
            let limit = max_batch.min(concurrency - self.running);
            let round = self.next_round(limit);
            if !round.is_empty() {
                self.running += round.len();
                self.claiming += 1;
                self.rounds.spawn(process(Arc::clone(&self.shared), round));
            }
        }
    }

    /// Takes deliveries with distinct keys. A copy of a key that is under way follows it instead of starting.
    fn next_round(&mut self, limit: usize) -> Vec<Work> {
        let mut round = Vec::with_capacity(limit.min(self.ready.len()));
        while round.len() < limit
            && let Some(mut work) = self.ready.pop_front()
        {
            if let Some(key) = work.key().filter(|_| !work.leads) {
                match self.leaders.entry(key) {
                    Entry::Occupied(mut followers) => {
                        followers.get_mut().push(work);
                        continue;
                    }
                    Entry::Vacant(leader) => {
                        leader.insert(Vec::new());
                        work.leads = true;
                    }
                }
            }
            round.push(work);
        }
        round
    }

    fn conclude_all(&mut self, reports: Vec<Report>) {
        // Deliveries that could not be claimed go back to the front, in their order.
        let mut unclaimed = Vec::new();
        for mut report in reports {
            match (report.verdict, report.again.take()) {
                (Verdict::Again { after }, Some(work)) => self.try_again(work, after),
                (Verdict::Parked { after }, Some(mut work)) => {
                    let lane = work.lane.take();
                    self.try_again(work, after);
                    self.advance(lane);
                }
                (_, Some(work)) => unclaimed.push(work),
                (_, None) => self.conclude(report),
            }
        }
        unclaimed.into_iter().rev().for_each(|work| self.ready.push_front(work));
    }

    fn try_again(&mut self, work: Work, after: Duration) {
        self.timers.set(Instant::now() + after.min(LONGEST_WAIT), work);
    }

    /// A delivery is settled: its copies share the outcome and its lane goes on.
    fn conclude(&mut self, report: Report) {
        self.forget(report.size);
        if let Some(followers) = report.key.and_then(|key| self.leaders.remove(&key)) {
            for follower in followers {
                self.follow(&report, follower);
            }
        }
        self.advance(report.lane);
    }

    fn advance(&mut self, lane: Option<u64>) {
        let Some(lane) = lane else { return };
        match self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    /// What the outcome of a message means for its copy: a copy of what is done is acked, a copy of what goes back to
    /// the broker goes back as well and uses up no attempt. What differs (another payload, a later generation) is no
    /// copy and speaks for itself.
    fn follow(&mut self, leader: &Report, follower: Work) {
        let is_copy = follower.fingerprint == leader.fingerprint && follower.generation <= leader.generation;
        if !is_copy || self.shared.config.mode == Mode::Observe {
            self.ready.push_back(follower);
            return;
        }
        match leader.verdict {
            Verdict::Ack(Counter::Handled | Counter::Duplicates) => {
                self.ack_copy(Counter::Duplicates, follower)
            }
            Verdict::Ack(Counter::DeadLettered | Counter::LettersDropped | Counter::DuplicatesOfDead) => {
                self.ack_copy(Counter::DuplicatesOfDead, follower);
            }
            Verdict::Ack(_) | Verdict::Reject => self.ready.push_back(follower),
            Verdict::GiveBack { after } => {
                self.shared.count(Counter::GivenBack, 1);
                self.settle_copy(follower, Some(Settlement::Retry { after }));
            }
            Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown | Verdict::Abandon => {
                self.shared.count(Counter::GivenBack, 1);
                self.settle_copy(follower, None);
            }
        }
    }

    fn ack_copy(&mut self, counter: Counter, follower: Work) {
        self.shared.count(counter, 1);
        self.settle_copy(follower, Some(Settlement::Ack));
    }

    #[expect(clippy::boxed_local, reason = "deliveries are boxed everywhere")]
    fn settle_copy(&mut self, follower: Work, settlement: Option<Settlement>) {
        self.forget(follower.size);
        let lane = follower.lane;
        match settlement {
            Some(settlement) => follower.receipt.settle(settlement),
            None => drop(follower.receipt),
        }
        self.advance(lane);
    }

    fn forget(&mut self, size: usize) {
        self.in_flight -= 1;
        self.in_flight_bytes -= size;
        self.unflushed += 1;
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(work) = self.timers.due(now) {
            self.ready.push_back(work);
        }
    }

    /// Fail closed: while the store does not answer, one round at a time asks it, after a growing pause.
    fn note_store(&mut self, answered: Result<(), String>) {
        let Err(error) = answered else {
            if self.store_retry_at.take().is_some() {
                tracing::info!("the store answers again");
            }
            self.store_failures = 0;
            return;
        };
        if self.store_failures == 0 {
            tracing::warn!(
                error,
                "the store does not answer: no handler starts, nothing is acked, intake pauses"
            );
        }
        let pause =
            self.shared.pause(Duration::from_millis(100), self.store_failures, Duration::from_secs(5));
        self.store_failures = self.store_failures.saturating_add(1);
        self.store_retry_at = Some(Instant::now() + pause);
    }

    fn wake_at(&self) -> Option<Instant> {
        let may_start = !self.ready.is_empty() && self.running < self.shared.config.concurrency;
        let store = self.store_retry_at.filter(|_| may_start && self.claiming == 0);
        [self.timers.next(), store].into_iter().flatten().min()
    }

    fn publish_gauges(&self) {
        let config = &self.shared.config;
        self.shared.counters.set_in_flight(self.in_flight, self.in_flight_bytes);
        self.shared.counters.set_store_up(self.store_retry_at.is_none());
        let pausing = config.policies.on_store_down == OnStoreDown::Pause && self.store_retry_at.is_some();
        self.gate.set_open(
            !pausing
                && self.in_flight.saturating_add_signed(self.unflushed) < config.max_in_flight
                && (self.in_flight_bytes < config.max_in_flight_bytes || self.in_flight == 0),
        );
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
