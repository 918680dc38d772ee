//! Takes in what rounds report about store and handler, and logs what changed.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Dispatcher, store};
use crate::pipeline::breaker::{Change, RunEnd};
use crate::pipeline::config::OnStoreDown;
use crate::pipeline::event::{Asked, Ended};
use crate::pipeline::runner::Runner;
use crate::telemetry::HandlerState;

impl<R: Runner> Dispatcher<R> {
    pub(super) fn note_store(&mut self, asked: Asked) {
        let context = Arc::clone(&self.context);
        let pause = |base, tries, longest| context.pause(base, tries, longest);
        match self.store.note(asked, Instant::now(), pause) {
            store::Change::None => {}
            store::Change::CameUp => {
                context.halt.set_store_down(false);
                tracing::info!("store available again");
            }
            store::Change::WentDown(error) => match self.context.config.policies.on_store_down {
                OnStoreDown::Pause => {
                    context.halt.set_store_down(true);
                    tracing::warn!(
                        error,
                        "store unavailable: no handler starts, nothing is acked, intake paused"
                    );
                }
                OnStoreDown::Process => tracing::warn!(
                    error,
                    "store unavailable: handlers run without claims, duplicates run again"
                ),
            },
            store::Change::Partial(error) => tracing::warn!(
                error,
                "store partly unavailable: messages of the unanswered keys wait, others proceed"
            ),
        }
    }

    pub(super) fn note_ended(&mut self, ended: Ended) {
        let now = Instant::now();
        if let Some(rate) = &mut self.rate {
            rate.give_back(ended.idle);
        }
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.ends(self.running, &ended, now);
        }
        if ended.runs > 0 {
            self.ahead.ended();
        }
        self.running -= ended.count;
        self.running_suspects -= ended.suspects;
        let context = Arc::clone(&self.context);
        let open_for = self.breaker.open_for(now);
        let succeeded = ended.succeeded.map(|id| (id, RunEnd::Succeeded, None));
        for (id, end, probe) in ended.failed.into_iter().chain(succeeded) {
            let pause = |base, tries, longest| context.pause(base, tries, longest);
            match self.breaker.note(id, end, probe, now, pause) {
                None => {}
                Some(Change::Opened) => tracing::warn!(
                    reason = self.breaker.reason().map(tracing::field::display),
                    "handler unavailable: intake paused, one message at a time probes it"
                ),
                Some(Change::Closed) => tracing::info!(?open_for, "handler available again"),
            }
        }
        let reason = self.breaker.reason();
        if reason.is_some() || self.handler_is_down {
            self.handler_is_down = reason.is_some();
            let state = reason.map_or(HandlerState::Up, HandlerState::Down);
            self.context.counters.set_handler_state(state);
        }
        self.context.halt.set_handler_down(self.breaker.opening());
    }
}
