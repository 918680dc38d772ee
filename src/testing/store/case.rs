//! A store, a scope and the calls that the checks are written in.

use std::sync::Mutex;
use std::time::Duration;

use super::{StoreHarness, Timing};
use crate::error::Error;
use crate::key::{Fingerprint, Key, Scope};
use crate::store::{
    Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, Claimed, CompleteRequest, Completion, Entropy,
    Exhausted, FailRequest, Failure, KeyRecord, KeyState, Lease, OwnerToken, Reason, Redrive, RedriveRequest,
    RenewRequest, Renewal, Store, StoreAdmin,
};

/// Some stores measure time in milliseconds, and round.
const GRAIN: Duration = Duration::from_millis(1);

/// One worker's view of the store under test.
pub(super) struct Case<'h, H: StoreHarness> {
    pub(super) harness: &'h H,
    pub(super) store: H::Store,
    pub(super) scope: Scope,
    pub(super) terms: ClaimTerms,
    pub(super) timing: Timing,
    entropy: Mutex<Entropy>,
}

impl<'h, H: StoreHarness> Case<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self::of_scope(harness, "conformance").await
    }

    pub(super) async fn of_scope(harness: &'h H, scope: &str) -> Self {
        let timing = harness.timing();
        Self {
            harness,
            store: harness.store().await,
            scope: Scope::parse(scope).expect("the suite's scopes are well formed"),
            terms: ClaimTerms { lease: timing.lease, max_attempts: 3, ttl: timing.ttl },
            timing,
            entropy: Mutex::new(Entropy::system()),
        }
    }

    /// The `n`th key, the same in every scope.
    pub(super) fn key(&self, n: u32) -> Key {
        let mut bytes = *Fingerprint::of(&n.to_be_bytes()).as_bytes();
        bytes[15] = 7;
        Key::from_bytes(bytes)
    }

    pub(super) fn token(&self) -> OwnerToken {
        self.entropy.lock().expect("no check panics with the lock held").token()
    }

    pub(super) fn request(&self, key: Key) -> ClaimRequest {
        ClaimRequest { key, owner: self.token(), fingerprint: None, generation: 0 }
    }

    pub(super) async fn advance(&self, by: Duration) {
        self.harness.advance(by).await;
    }

    /// Lets the lease of everything claimed so far run out.
    pub(super) async fn lapse(&self) {
        self.harness.advance(self.timing.lease).await;
    }

    pub(super) async fn ask(&self, request: ClaimRequest) -> Claim {
        one(self.store.claim(&self.scope, &self.terms, &[request]).await)
    }

    /// What another claimer with a fresh token gets.
    pub(super) async fn ask_for(&self, key: Key) -> Claim {
        self.ask(self.request(key)).await
    }

    /// Claims `key`, which must be free.
    pub(super) async fn claim(&self, key: Key) -> Claimed {
        claimed(self.ask_for(key).await)
    }

    /// Claims `key` for dead-lettering, which must be due.
    pub(super) async fn exhaust(&self, key: Key) -> Exhausted {
        match self.ask_for(key).await {
            Claim::Exhausted(exhausted) => exhausted,
            other => panic!("expected an exhausted key, got {other:?}"),
        }
    }

    pub(super) async fn complete(&self, lease: Lease) -> Completion {
        self.complete_with(self.completion(lease)).await
    }

    pub(super) fn completion(&self, lease: Lease) -> CompleteRequest {
        CompleteRequest::new(lease, self.timing.ttl)
    }

    pub(super) async fn complete_with(&self, request: CompleteRequest) -> Completion {
        one(self.store.complete(&self.scope, &[request]).await)
    }

    pub(super) async fn renew(&self, lease: Lease) -> Renewal {
        self.renew_with(lease, false).await
    }

    pub(super) async fn renew_with(&self, lease: Lease, started: bool) -> Renewal {
        let request = RenewRequest { lease, lease_for: self.timing.lease, started };
        one(self.store.renew(&self.scope, &[request]).await)
    }

    pub(super) async fn fail(&self, lease: Lease, error: &str) -> Failure {
        self.fail_with(lease, error, None).await
    }

    pub(super) async fn fail_with(&self, lease: Lease, error: &str, terminal: Option<Reason>) -> Failure {
        let request = FailRequest { lease, error: error.to_owned(), terminal };
        one(self.store.fail(&self.scope, &[request]).await)
    }

    pub(super) async fn bury(&self, lease: Lease) -> Burial {
        let request = BuryRequest { lease, ttl: self.timing.ttl };
        one(self.store.bury(&self.scope, &[request]).await)
    }

    pub(super) async fn release(&self, lease: Lease) -> bool {
        one(self.store.release(&self.scope, &[lease]).await)
    }

    pub(super) async fn redrive(&self, key: Key, generation: u32) -> Redrive {
        let request = RedriveRequest { key, generation, ttl: self.timing.ttl };
        one(self.store.redrive(&self.scope, &[request]).await)
    }

    pub(super) async fn forget(&self, key: Key) -> bool {
        one(self.store.forget(&self.scope, &[key]).await)
    }

    pub(super) async fn inspect(&self, key: Key) -> Option<KeyRecord> {
        self.store.inspect(&self.scope, &key).await.expect("the store answers")
    }

    /// The record of a key that must be known.
    pub(super) async fn record(&self, key: Key) -> KeyRecord {
        self.inspect(key).await.expect("the key is known")
    }

    /// All of a record but its ages: what a write that is refused must leave as it is.
    pub(super) async fn content(&self, key: Key) -> RecordContent {
        let record = self.record(key).await;
        RecordContent {
            state: record.state,
            fence: record.fence,
            attempts: record.attempts,
            lost: record.lost,
            generation: record.generation,
            reason: record.reason,
            error: record.error,
            result_bytes: record.result_bytes,
        }
    }

    /// Brings `key`, unknown so far, into `state` by a claim with `fingerprint`, and answers that claim. The lease of a
    /// pending or terminal key is live.
    pub(super) async fn bring(&self, key: Key, state: KeyState, fingerprint: Option<Fingerprint>) -> Lease {
        let lease = claimed(self.ask(ClaimRequest { fingerprint, ..self.request(key) }).await).lease;
        match state {
            KeyState::Pending => {}
            KeyState::Absent => assert!(self.release(lease).await),
            KeyState::Failed => drop(self.fail(lease, "no luck").await),
            KeyState::Terminal => drop(self.fail_with(lease, "hopeless", Some(Reason::Permanent)).await),
            KeyState::Completed => assert_eq!(self.complete(lease).await, Completion::Completed),
            KeyState::Dead => {
                let _ = self.fail_with(lease, "hopeless", Some(Reason::Permanent)).await;
                assert_eq!(self.bury(lease).await, Burial::Dead);
            }
        }
        assert_eq!(self.record(key).await.state, state);
        lease
    }

    /// Asserts that `left` is `expected`, or less by no more than a tick.
    pub(super) fn assert_left(&self, left: Duration, expected: Duration) {
        assert!(
            left <= expected + GRAIN && left + self.timing.tick >= expected,
            "{left:?} are left where about {expected:?} should be"
        );
    }

    /// Asserts that `age` is `expected`, or more by no more than a tick.
    pub(super) fn assert_age(&self, age: Duration, expected: Duration) {
        assert!(
            age + GRAIN >= expected && age <= expected + self.timing.tick,
            "the age is {age:?} where about {expected:?} should be"
        );
    }
}

/// See [`Case::content`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RecordContent {
    pub(super) state: KeyState,
    pub(super) fence: u64,
    pub(super) attempts: u32,
    pub(super) lost: u32,
    pub(super) generation: u32,
    pub(super) reason: Option<Reason>,
    pub(super) error: Option<String>,
    pub(super) result_bytes: Option<usize>,
}

/// The only answer of a batch of one.
pub(super) fn one<T>(mut answers: Vec<Result<T, Error>>) -> T {
    assert_eq!(answers.len(), 1, "a batch of one has one answer");
    answers.remove(0).expect("the store answers")
}

/// The answers of a batch that has no errors.
pub(super) fn all<T>(answers: Vec<Result<T, Error>>) -> Vec<T> {
    answers.into_iter().map(|answer| answer.expect("the store answers")).collect()
}

pub(super) fn claimed(claim: Claim) -> Claimed {
    match claim {
        Claim::Claimed(claimed) => claimed,
        other => panic!("expected a claim, got {other:?}"),
    }
}
