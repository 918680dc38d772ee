//! What all rounds of a pipeline share: its parts, counters, random numbers and the calls to the store.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::{HashSet, HashSetExt};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::{OnExhausted, PipelineConfig};
use super::dispatch::Event;
use super::halt::Halt;
use super::heartbeat::Heartbeat;
use super::key_sources::KeyWarnings;
use crate::coalesce::{Coalescer, bounded};
use crate::consumer::Capabilities;
use crate::dead_letter::{DeadLetters, HEADER_MAC};
use crate::error::{Error, ErrorKind};
use crate::extract::KeyExtractor;
use crate::failpoints::{self, Step};
use crate::key::{Key, Scope};
use crate::message::Message;
use crate::store::{
    Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, OwnerToken, Store,
};
use crate::telemetry::{Counter, Counters, RateLimited};

/// What all rounds share.
pub(crate) struct Context<R> {
    pub(crate) scope: Scope,
    pub(crate) keys: KeyExtractor,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runner: R,
    pub(crate) dead_letters: Option<DeadLetters>,
    pub(crate) config: PipelineConfig,
    pub(crate) capabilities: Capabilities,
    pub(crate) counters: Arc<Counters>,
    pub(crate) completions: Coalescer<CompleteRequest, Completion>,
    pub(crate) heartbeat: Heartbeat,
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

/// What is logged for many messages alike.
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
    /// Settlements that failed.
    pub(crate) settlements: RateLimited,
    /// Transactions that cannot be opened or whose outcome is unknown.
    pub(crate) transactions: RateLimited,
}

/// Keys whose expired claims were taken over, each with how many claims it has lost.
#[derive(Default)]
pub(crate) struct Takeovers(Option<HashSet<(Key, u32)>>);

/// So many are remembered; after that they are logged again.
const REMEMBERED_TAKEOVERS: usize = 10_000;

impl Takeovers {
    fn is_new(&mut self, key: Key, lost: u32) -> bool {
        let known = self.0.get_or_insert_with(HashSet::new);
        if known.len() >= REMEMBERED_TAKEOVERS {
            known.clear();
        }
        known.insert((key, lost))
    }
}

/// Owner tokens and jitter.
pub(crate) struct Chance {
    entropy: Entropy,
    rng: fastrand::Rng,
}

impl Chance {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        match seed {
            Some(seed) => Self { entropy: Entropy::seeded(seed), rng: fastrand::Rng::with_seed(seed) },
            None => Self { entropy: Entropy::system(), rng: fastrand::Rng::new() },
        }
    }
}

impl<R> Context<R> {
    pub(crate) fn count(&self, counter: Counter, count: usize) {
        self.counters.add(counter, count as u64);
    }

    /// Counts that the expired claim of another run was taken over, and tells it once. In a transaction its effect cannot have
    /// happened: `is_transactional`.
    pub(crate) fn note_takeover(&self, key: Key, lost: u32, is_transactional: bool) {
        let mut takeovers = self.takeovers.lock().unwrap_or_else(PoisonError::into_inner);
        if !takeovers.is_new(key, lost) {
            return;
        }
        drop(takeovers);
        self.count(Counter::Takeovers, 1);
        if is_transactional {
            tracing::info!(%key, lost, "the claim of a run that died or stood still has expired and is taken over");
        } else {
            tracing::warn!(
                %key, lost,
                "the claim of a run that died or stood still has expired and is taken over: if its handler had started, \
                 the effect may happen twice"
            );
        }
    }

    pub(crate) fn terms(&self) -> ClaimTerms {
        let max_attempts = match self.config.policies.on_exhausted {
            OnExhausted::DeadLetter => self.config.retry.max_attempts,
            // A parked message goes on being tried.
            OnExhausted::Park => u32::MAX,
        };
        ClaimTerms { lease: self.config.lease, max_attempts, ttl: self.config.ttl }
    }

    /// Counts a delivery whose headers say that it is a letter or retry of this scope, which nothing proves.
    pub(crate) fn note_unproven(&self, message: &Message) {
        self.count(Counter::OwnHeadersIgnored, 1);
        let has_mac = message.header(HEADER_MAC).is_some();
        if let Some(left_out) = self.log.unproven.allow("") {
            tracing::warn!(
                scope = %self.scope, origin = message.origin(), has_mac, left_out,
                "headers of a message say that it is a dead letter or retry of this scope, and nothing proves it: they count \
                 for nothing, and its key is taken from its content"
            );
        }
    }

    /// Draws owner tokens, under one lock for a batch.
    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut dyn FnMut() -> OwnerToken) -> T) -> T {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        draw(&mut || chance.entropy.token())
    }

    /// The backoff before the next try.
    pub(crate) fn backoff(&self, failures: u32, previous: Duration) -> Duration {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        self.config.retry.backoff.delay(failures, previous, &mut chance.rng)
    }

    /// Between half of `base · 2^tries` and all of it, at most `longest`: for waiting on others.
    pub(crate) fn pause(&self, base: Duration, tries: u32, longest: Duration) -> Duration {
        let full = base.saturating_mul(1 << tries.min(16)).min(longest);
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        full.mul_f64(0.5 + chance.rng.f64() / 2.0)
    }

    pub(crate) async fn claim(&self, batch: &[ClaimRequest]) -> Vec<Result<Claim, Error>> {
        failpoints::hit(Step::ClaimSent);
        let terms = self.terms();
        let call = self.store.claim(&self.scope, &terms, batch);
        let answers = bounded(self.config.store_timeout, "claim keys", batch.len(), call).await;
        failpoints::hit(Step::ClaimApplied);
        self.count_errors(&answers);
        answers
    }

    /// Writes completions, gathered with those of other rounds, until each is known to be written or refused.
    pub(crate) async fn complete(&self, batch: Vec<CompleteRequest>) -> Vec<Result<Completion, Error>> {
        // The calls are bounded where they are made: waiting for their turn is no failure.
        self.until_known(batch, |batch| Box::pin(self.completions.send(batch))).await
    }

    /// Repeats a write, with the same owner tokens, until each item is answered: *unknown is not failed*, and only an
    /// answer about the record ends a claim. A store that refuses the call (a right or password was taken away, a table
    /// is missing) says nothing about the record: such writes are repeated as well, since giving the claim up would run
    /// an effect again that has happened. The error for a record that cannot be read is such an answer. Gives up only
    /// when the drain deadline has passed.
    pub(crate) async fn until_known<'s, Q: Clone, T>(
        &'s self,
        batch: Vec<Q>,
        write: impl Fn(Vec<Q>) -> BoxFuture<'s, Vec<Result<T, Error>>>,
    ) -> Vec<Result<T, Error>> {
        let mut open: Vec<(usize, Q)> = batch.into_iter().enumerate().collect();
        let mut answers: Vec<Option<Result<T, Error>>> = open.iter().map(|_| None).collect();
        let mut tries = 0;
        loop {
            let requests = open.iter().map(|(_, request)| request.clone()).collect();
            let results = write(requests).await;
            let mut unknown = Vec::new();
            for ((index, request), result) in open.into_iter().zip(results) {
                match result {
                    Err(error) if error.kind() != ErrorKind::Corrupt && !self.giving_up.is_cancelled() => {
                        self.log_repeated(&error);
                        unknown.push((index, request));
                    }
                    result => answers[index] = Some(result),
                }
            }
            if unknown.is_empty() {
                return answers.into_iter().flatten().collect();
            }
            open = unknown;
            let pause = self.pause(Duration::from_millis(50), tries, Duration::from_secs(2));
            tries += 1;
            tokio::select! {
                biased;
                () = self.giving_up.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn log_repeated(&self, error: &Error) {
        if error.is_retryable() {
            tracing::debug!(%error, "a write is repeated with the same owner token");
        } else if let Some(left_out) = self.log.refused.allow(error.operation()) {
            tracing::error!(
                scope = %self.scope, ?error, left_out,
                "the store refuses a write; it is repeated and its claims are kept until it succeeds: give the store \
                 its rights, login or schema back"
            );
        }
    }

    /// Waits at most the store timeout for a call; past it, its outcome is unknown.
    pub(crate) async fn store_call<T>(
        &self,
        operation: &'static str,
        count: usize,
        call: impl Future<Output = Vec<Result<T, Error>>>,
    ) -> Vec<Result<T, Error>> {
        let answers = bounded(self.config.store_timeout, operation, count, call).await;
        self.count_errors(&answers);
        answers
    }

    pub(crate) fn count_errors<T>(&self, answers: &[Result<T, Error>]) {
        self.count(Counter::StoreErrors, answers.iter().filter(|answer| answer.is_err()).count());
    }

    /// Tells the dispatcher. It outlives all rounds, unless the runtime is being torn down.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
