//! Decides which deliveries start, and when: lanes, copies, retries, limits and pauses.

mod adaptive;
mod ahead;
mod copies;
mod drain;
mod drained;
mod identify;
mod lane;
mod leaving;
mod notes;
mod queue;
mod rate;
mod rounds;
mod sequences;
mod store;
mod suspects;
#[cfg(test)]
mod tests;
mod timers;
mod unidentified;
mod waiting_log;
mod watch;
mod window;

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use adaptive::AdaptiveLimit;
use ahead::ClaimsAhead;
pub(crate) use drained::Drained;
use lane::Lane;
use rate::RateLimit;
use store::StoreWatch;
use suspects::Suspects;
use timers::Timers;
use unidentified::Unidentified;
use waiting_log::WaitingLog;
use window::Window;

use super::breaker::Breaker;
use super::config::OnStoreDown;
use super::context::Context;
use super::event::{Event, Report};
use super::gate::Gate;
use super::limits::LONGEST;
use super::runner::Runner;
use super::work::{Footprint, Plan, Verdict, Work};
use crate::consumer::FlowControl;
use crate::key::Key;
use crate::telemetry::IntakePause;

/// Owns every delivery that is not in a round. It runs in one task and takes no locks.
pub(crate) struct Dispatcher<R> {
    context: Arc<Context<R>>,
    gate: Arc<Gate>,
    ready: VecDeque<Work>,
    /// Deliveries whose keys the store did not answer, due to be asked for again.
    unanswered: VecDeque<Work>,
    suspects: Suspects,
    unidentified: Unidentified,
    /// The keys that a delivery of this process leads, with the copies that wait for its outcome.
    leaders: HashMap<Key, Vec<Work>>,
    /// Lanes in which a delivery is under way, with those that wait behind it.
    lanes: HashMap<u64, Lane>,
    timers: Timers,
    window: Window,
    /// Epochs that have left, the oldest first.
    left: VecDeque<u64>,
    rounds: JoinSet<()>,
    claiming: usize,
    /// A round of deliveries that were not answered before is claiming.
    claiming_again: bool,
    running: usize,
    /// Of these, suspects.
    running_suspects: usize,
    rate: Option<RateLimit>,
    adaptive: Option<AdaptiveLimit>,
    ahead: ClaimsAhead,
    /// Settlements on their way to the broker: an acker that is stuck must not let them pile up. Below zero while the
    /// broker was faster than the report.
    unflushed: isize,
    panicked: bool,
    store: StoreWatch,
    breaker: Breaker,
    handler_is_down: bool,
    /// When the gate was last set.
    gated_at: Instant,
    waiting_log: WaitingLog,
    at_end: bool,
    idle: bool,
}

impl<R: Runner> Dispatcher<R> {
    pub(crate) fn new(context: Arc<Context<R>>, gate: Arc<Gate>, flow: Option<Arc<dyn FlowControl>>) -> Self {
        let now = Instant::now();
        let config = &context.config;
        Self {
            rate: config.rate_limit.map(|per_second| RateLimit::new(per_second, now)),
            adaptive: config.adaptive_concurrency.then(|| AdaptiveLimit::new(config.concurrency, now)),
            ahead: ClaimsAhead::new(config.claims_ahead),
            window: Window::new(&context.config, flow),
            breaker: Breaker::new(context.config.breaker),
            context,
            gate,
            ready: VecDeque::new(),
            unanswered: VecDeque::new(),
            suspects: Suspects::default(),
            unidentified: Unidentified::default(),
            leaders: HashMap::new(),
            lanes: HashMap::new(),
            timers: Timers::default(),
            left: VecDeque::new(),
            rounds: JoinSet::new(),
            claiming: 0,
            claiming_again: false,
            running: 0,
            running_suspects: 0,
            unflushed: 0,
            panicked: false,
            store: StoreWatch::new(),
            handler_is_down: false,
            gated_at: now,
            waiting_log: WaitingLog::default(),
            at_end: false,
            idle: false,
        }
    }

    /// Dispatches until the source is at its end and everything is settled, or until a drain is asked for and done.
    pub(crate) async fn run(mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Drained {
        let context = Arc::clone(&self.context);
        let mut batch = Vec::with_capacity(64);
        while !self.is_done() {
            let now = Instant::now();
            self.start_rounds();
            let wake_at = self.wake_at(now);
            tokio::select! {
                biased;
                () = context.draining.cancelled() => return self.drain(events).await,
                _ = events.recv_many(&mut batch, 64) => batch.drain(..).for_each(|event| self.take(event)),
                Some(joined) = self.rounds.join_next() => self.note_end(joined),
                () = sleep_until(wake_at) => {}
            }
            self.join_ended();
            self.fire_timers();
            self.start_identifying();
            self.look();
            self.window.pause_overfull();
            self.publish_gauges();
        }
        self.abandon_unstarted();
        Drained::Wholly
    }

    /// Joins the rounds that have ended, also while events never cease.
    fn join_ended(&mut self) {
        while let Some(joined) = self.rounds.try_join_next() {
            self.note_end(joined);
        }
    }

    /// A round that panics is a fault of this crate or of an adapter. Its deliveries go back to the broker; the run ends,
    /// since what it knew of lanes and slots is wrong now.
    fn note_end(&mut self, joined: Result<(), JoinError>) {
        if let Err(error) = joined
            && error.is_panic()
        {
            tracing::error!(%error, "round panicked; the run ends, nothing of the round is acked");
            self.panicked = true;
            self.context.draining.cancel();
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
                + self.lanes.values().map(|lane| lane.waiting.len()).sum::<usize>();
            held == self.window.held() && self.timers.all().all(|work| work.parked)
        };
        self.window.held() == 0 || only_parked()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Arrived(mut works) => {
                self.idle = false;
                let now = Instant::now();
                self.store.arrived(now);
                self.window.begin_batch(now);
                self.gate.seen();
                self.window.take(&mut works);
                works.into_iter().for_each(|work| self.arrive(work));
            }
            Event::Identified(identified) => self.note_identified(identified),
            Event::End => self.at_end = true,
            // What goes back to the source while it is asked would not be seen: it must be there by then.
            Event::Idle => self.idle = self.is_quiet() && self.unflushed <= 0,
            Event::Leaving { epoch } => self.leave(epoch),
            Event::Claimed { asked, again } => {
                self.claiming -= 1;
                self.ahead.answered();
                self.claiming_again &= !again;
                asked.into_iter().for_each(|asked| self.note_store(asked));
            }
            Event::Finished(ended) => self.note_ended(ended),
            Event::Settled(reports) => self.conclude_all(reports),
            Event::SequenceEnded(ended) => self.note_sequence_end(ended),
            Event::Flushed(count) => self.unflushed -= count.cast_signed(),
        }
    }

    fn arrive(&mut self, mut work: Work) {
        if self.context.halt.is_leaving(work.receipt.tag().epoch) {
            self.give_back(work);
            return;
        }
        match work.lane.map(|lane| self.lanes.entry(lane)) {
            Some(Entry::Occupied(mut waiting)) => {
                self.window.wait(&mut work);
                waiting.get_mut().waiting.push_back(work);
            }
            Some(Entry::Vacant(lane)) => {
                lane.insert(Lane::default());
                self.enqueue(work);
            }
            None => self.enqueue(work),
        }
    }

    /// Puts a delivery where it waits for its turn to start.
    fn enqueue(&mut self, mut work: Work) {
        if matches!(work.plan, Plan::Identify) {
            self.window.wake(&mut work);
            self.unidentified.waiting.push_back(work);
        } else if work.store_tries > 0 {
            self.window.wait(&mut work);
            self.unanswered.push_back(work);
        } else if work.lost > 0 {
            // It leads its key while it waits for its turn: one that had its turn and then followed a copy, which waits for a
            // turn too, would wait for ever.
            let Some(mut work) = self.lead(work) else { return };
            self.window.wait(&mut work);
            let behind = self.lanes.values().flat_map(|lane| &lane.waiting).filter(|work| work.lost > 0);
            self.suspects.park(work, |most| behind.take(most).count());
        } else {
            self.window.wake(&mut work);
            self.ready.push_back(work);
        }
    }

    fn conclude_all(&mut self, mut reports: Vec<Report>) {
        let settled = reports.iter().filter(|report| report.again.is_none());
        self.let_go_all(settled.map(|report| report.footprint));
        for report in &mut reports {
            if report.turn.is_some() {
                self.suspects.turn_ended();
            }
            match report.again.take() {
                Some(work) => self.try_again(work, report),
                None => self.conclude(report),
            }
        }
    }

    fn try_again(&mut self, mut work: Work, report: &Report) {
        work.turn = None;
        if self.context.halt.is_leaving(report.footprint.epoch) {
            self.give_back_first(work);
            return;
        }
        self.keep_for_its_reply(&mut work);
        let after = match report.verdict {
            Verdict::Again { after } | Verdict::Parked { after } => after,
            // The same owner token again: a claim whose reply was lost recognises itself.
            _ => {
                work.store_tries = work.store_tries.saturating_add(1);
                self.context.pause(Duration::from_millis(100), work.store_tries - 1, Duration::from_secs(5))
            }
        };
        if report.turn.is_none() && work.lost > 0 && work.store_tries == 0 {
            // Found to be a suspect just now: it waits for its turn, and for nothing else.
            self.enqueue(work);
            return;
        }
        // A parked message leaves its lane: those behind it go on, its copies among them.
        let lane = if matches!(report.verdict, Verdict::Parked { .. }) {
            self.stop_leading(&mut work);
            work.lane.take()
        } else {
            None
        };
        self.window.wait(&mut work);
        self.timers.set(Instant::now() + after.min(LONGEST), work);
        self.advance(lane);
    }

    /// A delivery is settled, and counted no longer: its copies share the outcome and its lane goes on.
    fn conclude(&mut self, report: &Report) {
        if let Some(followers) = report.key.and_then(|key| self.leaders.remove(&key)) {
            for mut follower in followers {
                self.window.wake(&mut follower);
                self.follow(report, follower);
            }
        }
        self.advance(report.lane);
    }

    fn advance(&mut self, lane: Option<u64>) {
        let Some(lane) = lane else { return };
        match self.lanes.get_mut(&lane).and_then(|lane| lane.waiting.pop_front()) {
            Some(next) => self.enqueue(next),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    fn let_go(&mut self, footprint: Footprint) {
        self.let_go_all(std::iter::once(footprint));
    }

    fn let_go_all(&mut self, footprints: impl Iterator<Item = Footprint>) {
        self.window.let_go(footprints.inspect(|_| self.unflushed += 1));
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(mut work) = self.timers.due(now) {
            work.held_until = None;
            self.enqueue(work);
        }
    }

    fn publish_gauges(&mut self) {
        let concurrency = self.concurrency();
        let counters = &self.context.counters;
        counters.set_in_flight(self.window.held(), self.window.held_bytes());
        counters.set_waiting(self.window.waiting());
        counters.set_oldest_unsettled(self.window.oldest());
        counters.set_running(self.running);
        counters.set_concurrency(concurrency);
        counters.set_breaker_open(self.breaker.is_open());
        counters.set_store_up(!self.store.is_down());
        let now = Instant::now();
        self.gated_at = now;
        let store_lets_in =
            self.context.config.policies.on_store_down == OnStoreDown::Process || self.store.lets_in(now);
        // A breaker that is open needs a message to probe with, and no more.
        let breaker_lets_in = !self.breaker.is_open() || !self.has_startable();
        let mut paused = self.window.full(self.unflushed);
        let rate_is_used_up = self.rate.as_mut().is_some_and(|rate| rate.available(now) == 0);
        paused.set(IntakePause::Rate, rate_is_used_up && !paused.is_empty());
        paused.set(IntakePause::Store, !store_lets_in);
        paused.set(IntakePause::Handler, !breaker_lets_in);
        counters.set_paused(paused);
        self.gate.set_open(paused.is_empty());
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
