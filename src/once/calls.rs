//! Store calls that concurrent calls of [`once`](super::Deduplicator::once) share.

use std::sync::Arc;
use std::time::Duration;

use super::OnceConfig;
use crate::coalesce::{CALLS_IN_FLIGHT, Coalescer, Terms};
use crate::error::Error;
use crate::key::{Key, Scope};
use crate::store::{
    Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, FailRequest, Failure, Lease, RenewRequest,
    Renewal, Store,
};
use crate::telemetry::{Counter, Counters};

/// Items in one store call.
const MAX_BATCH: usize = 256;

/// Renewals under way at once: one that hangs must not delay the others.
const RENEWALS_IN_FLIGHT: usize = 32;

pub(super) struct Calls {
    pub(super) claims: Coalescer<ClaimRequest, Claim>,
    pub(super) completions: Coalescer<CompleteRequest, Completion>,
    pub(super) renewals: Coalescer<RenewRequest, Renewal>,
    pub(super) failures: Coalescer<FailRequest, Failure>,
    pub(super) releases: Coalescer<Lease, bool>,
}

/// A request for one key.
trait OfKey {
    fn key(&self) -> Key;
}

impl OfKey for ClaimRequest {
    fn key(&self) -> Key {
        self.key
    }
}

impl OfKey for CompleteRequest {
    fn key(&self) -> Key {
        self.lease.key
    }
}

impl OfKey for RenewRequest {
    fn key(&self) -> Key {
        self.lease.key
    }
}

impl OfKey for FailRequest {
    fn key(&self) -> Key {
        self.lease.key
    }
}

impl OfKey for Lease {
    fn key(&self) -> Key {
        self.key
    }
}

fn terms<Q: OfKey>(operation: &'static str, limit: Duration, calls_in_flight: usize) -> Terms<Q> {
    let clashes =
        |batch: &[Q], more: &[Q]| more.iter().any(|one| batch.iter().any(|other| other.key() == one.key()));
    Terms { operation, max_batch: MAX_BATCH, limit, calls_in_flight, clashes }
}

fn counted<T>(counters: &Counters, answers: Vec<Result<T, Error>>) -> Vec<Result<T, Error>> {
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    counters.add(Counter::StoreErrors, failed as u64);
    answers
}

impl Calls {
    pub(super) fn start(
        scope: &Scope,
        store: &Arc<dyn Store>,
        config: &OnceConfig,
        counters: &Arc<Counters>,
    ) -> Self {
        let parts = || (scope.clone(), Arc::clone(store), Arc::clone(counters));
        let limit = config.store_timeout;
        let claim_terms =
            ClaimTerms { lease: config.lease, max_attempts: config.max_attempts, ttl: config.ttl };
        let (claims, completions, renewals, failures, releases) =
            (parts(), parts(), parts(), parts(), parts());
        Self {
            claims: Coalescer::start(terms("claim keys", limit, CALLS_IN_FLIGHT), move |batch: Vec<_>| {
                let (scope, store, counters) = claims.clone();
                async move { counted(&counters, store.claim(&scope, &claim_terms, &batch).await) }
            }),
            completions: Coalescer::start(
                terms("complete keys", limit, CALLS_IN_FLIGHT),
                move |batch: Vec<_>| {
                    let (scope, store, counters) = completions.clone();
                    async move { counted(&counters, store.complete(&scope, &batch).await) }
                },
            ),
            // A call that hangs must leave time for another one within the lease.
            renewals: Coalescer::start(
                terms("renew leases", limit.min(config.lease / 3), RENEWALS_IN_FLIGHT),
                move |batch: Vec<_>| {
                    let (scope, store, counters) = renewals.clone();
                    async move { counted(&counters, store.renew(&scope, &batch).await) }
                },
            ),
            failures: Coalescer::start(
                terms("write failed runs", limit, CALLS_IN_FLIGHT),
                move |batch: Vec<_>| {
                    let (scope, store, counters) = failures.clone();
                    async move { counted(&counters, store.fail(&scope, &batch).await) }
                },
            ),
            releases: Coalescer::start(
                terms("release claims", limit, CALLS_IN_FLIGHT),
                move |batch: Vec<_>| {
                    let (scope, store, counters) = releases.clone();
                    async move { counted(&counters, store.release(&scope, &batch).await) }
                },
            ),
        }
    }
}
