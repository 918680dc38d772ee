//! Derives keys and fingerprints of large messages on threads that may block, so that neither intake nor the rounds of
//! other messages wait for it.

use std::panic::resume_unwind;
use std::sync::Arc;

use super::Dispatcher;
use crate::pipeline::event::{Event, Identified};
use crate::pipeline::identity::{Identity, identify_one, memory_for};
use crate::pipeline::runner::Runner;

/// How many are looked at side by side. Each takes a core.
const AT_ONCE: usize = 2;

impl<R: Runner> Dispatcher<R> {
    /// Starts looking at those that wait, as long as their memory fits into the limit; one is always looked at.
    pub(super) fn start_identifying(&mut self) {
        while self.unidentified.under_way < AT_ONCE
            && let Some(next) = self.unidentified.waiting.front()
        {
            let memory = memory_for(&self.context, &next.message);
            if self.unidentified.under_way > 0 && !self.window.could_lend(memory) {
                return;
            }
            let Some(mut work) = self.unidentified.waiting.pop_front() else { return };
            self.unidentified.under_way += 1;
            self.window.lend(memory);
            let context = Arc::clone(&self.context);
            self.rounds.spawn(async move {
                let (message, on) = (work.message.clone(), Arc::clone(&context));
                match tokio::task::spawn_blocking(move || identify_one(&on, &message)).await {
                    Ok(Identity { plan, fingerprint, generation, unproven }) => {
                        (work.plan, work.fingerprint) = (plan, fingerprint);
                        (work.generation, work.unproven) = (generation, unproven);
                        context.send(Event::Identified(Identified { work, memory }));
                    }
                    // A fault of this crate, as in a round.
                    Err(error) => {
                        if let Ok(panic) = error.try_into_panic() {
                            resume_unwind(panic);
                        }
                    }
                }
            });
        }
    }

    pub(super) fn note_identified(&mut self, Identified { work, memory }: Identified) {
        self.unidentified.under_way -= 1;
        self.window.take_back(memory);
        if self.context.halt.is_leaving(work.receipt.tag().epoch) {
            self.give_back_first(work);
        } else {
            self.enqueue(work);
        }
    }
}
