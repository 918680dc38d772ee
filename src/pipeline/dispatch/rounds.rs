//! Forms rounds of deliveries with distinct keys, as free slots, store and handler allow.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use tokio::time::Instant;

use super::Dispatcher;
use super::adaptive::AdaptiveLimit;
use super::rate::RateLimit;
use super::sequences::slots;
use crate::pipeline::claim::ClaimTarget;
use crate::pipeline::config::{Mode, OnStoreDown};
use crate::pipeline::process::process;
use crate::pipeline::runner::Runner;
use crate::pipeline::work::Work;

/// Rounds whose claims are under way. While both are, what becomes ready gathers into the next round.
const CLAIMING_ROUNDS: usize = 2;

impl<R: Runner> Dispatcher<R> {
    /// Starts rounds as long as there are deliveries, free slots and claims to spare.
    pub(super) fn start_rounds(&mut self) {
        while self.start_one() {}
    }

    /// True if something could start, were there a slot.
    pub(super) fn has_startable(&self) -> bool {
        !self.ready.is_empty() || !self.unanswered.is_empty() || self.suspects.may_start(self.concurrency())
    }

    /// Starts one round; false if none can start now.
    fn start_one(&mut self) -> bool {
        if !self.has_startable() {
            return false;
        }
        let mut free = self.room().saturating_sub(self.running);
        if let Some(slots) = &self.context.slots {
            self.ahead.look(slots);
            if free == 0 {
                self.ahead.lacks(slots);
                free = self.room().saturating_sub(self.running);
            }
        }
        if free == 0 {
            return false;
        }
        let (now, most) = (Instant::now(), self.context.config.max_batch);
        let allowed = self.rate.as_mut().map_or(most, |rate| most.min(rate.available(now)));
        if allowed == 0 {
            return false;
        }
        let probes = self.breaker.is_open();
        if probes && !self.breaker.may_probe(now) {
            return false;
        }
        let limit = if probes { 1 } else { free.min(allowed) };
        if self.store.is_down() {
            self.start_while_down(limit, now)
        } else {
            self.start_while_up(limit, allowed)
        }
    }

    /// At most `limit` sequences of together at most `most` deliveries.
    fn start_while_up(&mut self, limit: usize, most: usize) -> bool {
        if self.claiming >= CLAIMING_ROUNDS {
            return false;
        }
        // Keys that were not answered are asked for on their own and by few, so that a node that does not answer holds up
        // neither the claims of the others nor their slots.
        if !self.unanswered.is_empty() && !self.claiming_again {
            let few = limit.min((self.concurrency() / 8).max(1));
            let round = self.next_round(few, Self::next_unanswered);
            return self.start(round, ClaimTarget::StoreAgain);
        }
        let concurrency = self.concurrency();
        if self.suspects.may_start(concurrency) {
            let firsts = self.suspects.next(limit, concurrency);
            let mut round = Vec::with_capacity(firsts.len());
            let mut firsts = firsts.into_iter();
            while let Some(mut work) = firsts.next() {
                self.window.wake(&mut work);
                round.push(work);
                self.add_sequence(&mut round, most.saturating_sub(firsts.len()));
            }
            return self.start(round, ClaimTarget::Store);
        }
        // Others leave a slot to the suspects that wait for their turn.
        let others = self.running - self.running_suspects;
        let kept_free = usize::from(self.suspects.waiting() > 0 && concurrency > 1);
        let limit = limit.min((self.room() - kept_free).saturating_sub(others));
        if self.ready.is_empty() || limit == 0 {
            return false;
        }
        let round = self.next_sequences(limit, most);
        self.start(round, ClaimTarget::Store)
    }

    /// Fail closed: while the store does not answer, only a single round asks it, after a growing pause. Where handlers
    /// may run without a claim, all others go without asking.
    fn start_while_down(&mut self, limit: usize, now: Instant) -> bool {
        let is_due = self.store.retry_at().is_none_or(|at| at <= now);
        let may_ask = self.claiming == 0 && is_due;
        let without = !R::NEEDS_CLAIM
            && (self.context.config.policies.on_store_down == OnStoreDown::Process
                || self.context.config.mode == Mode::Observe);
        if without && !may_ask {
            let round = self.next_round(limit, Self::next_of_any);
            return self.start(round, ClaimTarget::Bypass);
        }
        let fresh = self.claiming == 0 && self.store.asks_for_fresh() && !self.ready.is_empty();
        if !may_ask && !fresh {
            return false;
        }
        let next = if may_ask { Self::next_of_any } else { Self::next_ready };
        let limit = if without { 1 } else { limit };
        let round = self.next_round(limit, next);
        self.start(round, ClaimTarget::Store)
    }

    fn next_ready(&mut self) -> Option<Work> {
        self.ready.pop_front()
    }

    fn next_unanswered(&mut self) -> Option<Work> {
        self.unanswered.pop_front()
    }

    /// Those that were never asked for first, then the others in turn.
    fn next_of_any(&mut self) -> Option<Work> {
        let next = self.ready.pop_front().or_else(|| self.unanswered.pop_front());
        next.or_else(|| self.suspects.next(1, self.concurrency()).pop())
    }

    /// Takes deliveries with distinct keys.
    fn next_round(&mut self, limit: usize, next: fn(&mut Self) -> Option<Work>) -> Vec<Work> {
        let mut round = Vec::with_capacity(limit.min(self.ready.len() + self.unanswered.len()));
        while round.len() < limit
            && let Some(work) = next(self)
        {
            round.extend(self.lead(work));
        }
        round
    }

    /// A copy of a key that is under way follows it instead of starting.
    pub(super) fn lead(&mut self, mut work: Work) -> Option<Work> {
        if let Some(key) = work.key().filter(|_| !work.leads) {
            match self.leaders.entry(key) {
                Entry::Occupied(mut followers) => {
                    self.window.wait(&mut work);
                    followers.get_mut().push(work);
                    return None;
                }
                Entry::Vacant(leader) => {
                    leader.insert(Vec::new());
                    work.leads = true;
                }
            }
        }
        self.window.wake(&mut work);
        Some(work)
    }

    /// The copies of a delivery that is to wait for long are no longer its followers.
    pub(super) fn stop_leading(&mut self, work: &mut Work) {
        if std::mem::take(&mut work.leads)
            && let Some(followers) = work.key().and_then(|key| self.leaders.remove(&key))
        {
            followers.into_iter().for_each(|follower| self.enqueue(follower));
        }
    }

    /// True: something has changed, another round may follow.
    fn start(&mut self, mut round: Vec<Work>, target: ClaimTarget) -> bool {
        if round.is_empty() {
            return true;
        }
        let probe = self.breaker.probe_started();
        round.iter_mut().for_each(|work| work.probe = probe);
        if let Some(rate) = &mut self.rate {
            rate.take(round.len());
        }
        let starting = slots(&round).count();
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.starts(self.running, starting, Instant::now());
        }
        self.running += starting;
        self.running_suspects += slots(&round).filter(|first| first.turn.is_some()).count();
        self.claiming += 1;
        self.claiming_again |= target == ClaimTarget::StoreAgain;
        self.rounds.spawn(process(Arc::clone(&self.context), round, target));
        true
    }

    /// The time at which something may change by itself. Anything due before `now` was considered and could not start
    /// for another reason: to wake for it again would spin.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let may_start = self.running < self.room() && self.has_startable();
        let rate = self.rate.as_ref().map(RateLimit::next_at).filter(|at| may_start && *at > now);
        let store = self.store.retry_at().filter(|at| may_start && self.claiming == 0 && *at > now);
        let probe = self.breaker.probe_at().filter(|at| may_start && *at > now);
        let intake = self.store.lets_in_at().filter(|at| *at > self.gated_at);
        let times = [
            self.timers.next(),
            rate,
            store,
            probe,
            intake,
            self.waiting_log.next(),
            self.window.pauses_at(),
        ];
        times.into_iter().flatten().min()
    }

    /// How many may run at once.
    pub(super) fn concurrency(&self) -> usize {
        self.adaptive.as_ref().map_or(self.context.config.concurrency, AdaptiveLimit::limit)
    }

    /// How many deliveries may be in rounds, their handlers not ended. Beside suspects nothing is claimed ahead: they would wait for a
    /// slot, and a crash would make suspects of more.
    pub(super) fn room(&self) -> usize {
        let has_suspects = self.suspects.waiting() > 0 || self.running_suspects > 0;
        self.concurrency() + if has_suspects { 0 } else { self.ahead.count() }
    }
}
