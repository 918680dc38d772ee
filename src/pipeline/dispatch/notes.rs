//! What rounds report about the store and the handler, and what is logged about both.

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
            store::Change::CameUp => tracing::info!("the store answers again"),
            store::Change::WentDown(error) => match self.context.config.policies.on_store_down {
                OnStoreDown::Pause => tracing::warn!(
                    error,
                    "the store does not answer: no handler starts, nothing is acked, intake pauses"
                ),
                OnStoreDown::Process => tracing::warn!(
                    error,
                    "the store does not answer: handlers run without claims, duplicates run again"
                ),
            },
            store::Change::Partial(error) => tracing::warn!(
                error,
                "the store answers for some keys and not for others: their messages wait, the others go on"
            ),
        }
    }

    pub(super) fn note_ended(&mut self, ended: Ended) {
        self.running -= ended.count;
        self.running_suspects -= ended.suspects;
        let context = Arc::clone(&self.context);
        let now = Instant::now();
        let open_for = self.breaker.open_for(now);
        let succeeded = ended.succeeded.map(|id| (id, RunEnd::Succeeded, None));
        for (id, end, probe) in ended.failed.into_iter().chain(succeeded) {
            let pause = |base, tries, longest| context.pause(base, tries, longest);
            match self.breaker.note(id, end, probe, now, pause) {
                None => {}
                Some(Change::Opened) => tracing::warn!(
                    reason = self.breaker.reason(),
                    "the handler is taken to be unavailable: intake pauses, and one message at a time tries whether it \
                     works again"
                ),
                Some(Change::Closed) => tracing::info!(?open_for, "the handler works again"),
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
