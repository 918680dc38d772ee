//! Ends dispatching: starts nothing more, and releases the deliveries that have not started.

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Dispatcher;
use super::drained::Drained;
use crate::pipeline::event::Event;
use crate::pipeline::runner::Runner;
use crate::pipeline::slots::RunSlots;
use crate::pipeline::work::Work;
use crate::telemetry::Counter;

impl<R: Runner> Dispatcher<R> {
    /// Starts nothing more, waits for what runs, and after the drain deadline cancels it and abandons it.
    pub(super) async fn drain(mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Drained {
        self.gate.set_open(false);
        self.context.slots.iter().for_each(RunSlots::close);
        let deadline = Instant::now() + self.context.config.drain_timeout;
        let mut batch = Vec::with_capacity(64);
        // How many runs the deadline found still going.
        let mut cut = None;
        loop {
            self.abandon_unstarted();
            self.publish_gauges();
            self.join_ended();
            if self.rounds.is_empty() {
                // Every round has ended; the events of the last ones are taken below.
                while let Ok(event) = events.try_recv() {
                    self.take(event);
                }
                self.abandon_unstarted();
                return match cut {
                    _ if self.panicked => Drained::Panicked,
                    Some(runs @ 1..) => Drained::Abandoned(runs),
                    _ => Drained::Wholly,
                };
            }
            let until = if cut.is_some() { deadline + self.context.config.cancel_grace } else { deadline };
            tokio::select! {
                biased;
                _ = events.recv_many(&mut batch, 64) => batch.drain(..).for_each(|event| self.take(event)),
                Some(joined) = self.rounds.join_next() => self.note_end(joined),
                () = tokio::time::sleep_until(until) => {
                    if let Some(runs) = cut {
                        self.rounds.abort_all();
                        while self.rounds.join_next().await.is_some() {}
                        while let Ok(event) = events.try_recv() {
                            self.take(event);
                        }
                        self.abandon_unstarted();
                        // The remaining deliveries were in the rounds that were dropped; their copies go back in order.
                        let copies = std::mem::take(&mut self.leaders).into_values().flatten();
                        let mut copies: Vec<Work> = copies.collect();
                        copies.sort_by_key(|work| work.receipt.tag());
                        drop(copies);
                        self.context.count(Counter::GivenBack, self.window.held());
                        self.context.counters.set_in_flight(0, 0);
                        self.context.counters.set_waiting(0);
                        return Drained::Abandoned(runs);
                    }
                    cut = Some(self.running);
                    tracing::warn!(running = self.running, "drain deadline exceeded; running handlers cancelled");
                    self.context.giving_up.cancel();
                    self.context.kept_alive.cancel_all();
                }
            }
        }
    }

    /// Gives back what has not started. Copies wait for their leader as long as it runs.
    pub(super) fn abandon_unstarted(&mut self) {
        let mut waiting: Vec<Work> = self.timers.take_all().chain(self.ready.drain(..)).collect();
        waiting.extend(self.unanswered.drain(..));
        waiting.extend(self.unidentified.waiting.drain(..));
        waiting.extend(self.suspects.take_if(|_| true));
        for lane in self.lanes.values_mut() {
            waiting.extend(lane.waiting.drain(..));
        }
        // In the order of their delivery, which a broker may keep; lanes have none.
        waiting.sort_by_key(|work| work.receipt.tag());
        for work in waiting {
            let followers =
                if work.leads { work.key().and_then(|key| self.leaders.remove(&key)) } else { None };
            for work in followers.into_iter().flatten().chain([work]) {
                self.give_back(work);
            }
        }
        self.context.counters.set_in_flight(self.window.held(), self.window.held_bytes());
        self.context.counters.set_waiting(self.window.waiting());
    }
}
