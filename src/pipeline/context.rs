//! The parts that all tasks of a pipeline share: [`Context`].

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::chance::Chance;
use super::config::PipelineConfig;
use super::event::Event;
use super::halt::Halt;
use super::kept_alive::KeptAlive;
use super::key_sources::KeyWarnings;
use super::measure::{Ends, Measurer};
use super::slots::RunSlots;
use super::takeovers::Takeovers;
use super::work::InFlight;
use crate::coalesce::Coalescer;
use crate::consumer::Capabilities;
use crate::dead_letter::{DeadLetters, HEADER_MAC};
use crate::extract::KeyExtractor;
use crate::key::{Key, Scope};
use crate::message::Message;
use crate::replies::Replies;
use crate::store::{CompleteRequest, Completion, OwnerToken, Store};
use crate::telemetry::{Counter, Counters, RateLimited};

/// The parts that all tasks of a pipeline share.
pub(crate) struct Context<R> {
    pub(crate) scope: Scope,
    pub(crate) keys: KeyExtractor,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runner: R,
    pub(crate) dead_letters: Option<DeadLetters>,
    /// Sends results to where messages ask for them; `None` where no results are replayed.
    pub(crate) replies: Option<Arc<dyn Replies>>,
    pub(crate) config: PipelineConfig,
    pub(crate) capabilities: Capabilities,
    pub(crate) counters: Arc<Counters>,
    pub(crate) measurer: Measurer,
    pub(crate) completions: Coalescer<CompleteRequest, Completion>,
    pub(crate) kept_alive: KeptAlive,
    /// Where more is claimed than has a slot.
    pub(crate) slots: Option<RunSlots>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// What must not start although its round is under way.
    pub(crate) halt: Halt,
    /// Take-overs that were logged already.
    pub(crate) takeovers: Mutex<Takeovers>,
    /// Runs that have succeeded, which shows that the handler is available.
    pub(crate) successes: AtomicU64,
    /// Fires when no new run may start.
    pub(crate) draining: CancellationToken,
    /// Fires when the drain deadline has passed: what is not durable by now is left to the broker.
    pub(crate) giving_up: CancellationToken,
    pub(crate) chance: Mutex<Chance>,
    pub(crate) log: RepeatedLines,
}

/// Log lines that many messages share.
#[derive(Debug, Default)]
pub(crate) struct RepeatedLines {
    /// Keys from a weaker source than configured.
    pub(crate) keys: KeyWarnings,
    /// Deliveries that look like ours and are not known to be.
    pub(crate) unproven: RateLimited,
    /// Writes that the store refuses.
    pub(crate) refused: RateLimited,
    /// Runs that failed and will be repeated.
    pub(crate) failed: RateLimited,
    /// Dead letters that are not confirmed, and messages that are parked.
    pub(crate) letters: RateLimited,
    /// Replies that failed or cannot be delivered.
    pub(crate) replies: RateLimited,
    /// Settlements that failed.
    pub(crate) settlements: RateLimited,
    /// Extensions of deliveries that failed, by the operation and the kind of the error.
    pub(crate) extensions: RateLimited,
    /// Transactions that cannot be opened or whose outcome is unknown.
    pub(crate) transactions: RateLimited,
}

impl<R> Context<R> {
    pub(crate) fn count(&self, counter: Counter, count: usize) {
        self.counters.add(counter, count as u64);
    }

    /// Counts that the expired claim of another run was taken over, and logs it once. In a transaction its effect
    /// cannot have happened: `is_transactional`.
    pub(crate) fn note_takeover(&self, work: &InFlight, key: Key, lost: u32, is_transactional: bool) {
        let mut takeovers = self.takeovers.lock();
        if !takeovers.is_new(key, lost) {
            return;
        }
        drop(takeovers);
        self.count(Counter::Takeovers, 1);
        let (scope, origin) = (&self.scope, work.message.origin());
        let (position, message_id) = (work.log_position(), work.log_id());
        if is_transactional {
            tracing::info!(%scope, %key, origin, position, message_id, lost, "expired claim taken over");
        } else {
            tracing::warn!(
                %scope, %key, origin, position, message_id, lost,
                "expired claim taken over; if its handler had started, the effect may happen twice"
            );
        }
    }

    /// Counts a delivery whose headers mark it as a letter or retry of this scope, which nothing proves.
    pub(crate) fn note_unproven(&self, message: &Message) {
        self.count(Counter::OwnHeadersIgnored, 1);
        let has_mac = message.header(HEADER_MAC).is_some();
        if let Some(left_out) = self.log.unproven.allow("") {
            tracing::warn!(
                scope = %self.scope, origin = message.origin(), has_mac, left_out,
                "unauthenticated dead-letter or retry headers ignored; the key is derived from the content"
            );
        }
    }

    /// Starts to count and report the ends of deliveries.
    pub(crate) fn ends(&self) -> Ends<'_> {
        self.measurer.ends(&self.counters)
    }

    /// Draws owner tokens, under one lock for a batch.
    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut dyn FnMut() -> OwnerToken) -> T) -> T {
        let mut chance = self.chance.lock();
        draw(&mut || chance.token())
    }

    /// The backoff before the next try.
    pub(crate) fn backoff(&self, failures: u32, previous: Duration) -> Duration {
        let mut chance = self.chance.lock();
        chance.backoff(&self.config.retry.backoff, failures, previous)
    }

    /// Between half of `base · 2^tries` and all of it, at most `longest`: for waiting on others.
    pub(crate) fn pause(&self, base: Duration, tries: u32, longest: Duration) -> Duration {
        self.chance.lock().pause(base, tries, longest)
    }

    /// Notifies the dispatcher. It outlives all rounds, unless the runtime is being torn down.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
