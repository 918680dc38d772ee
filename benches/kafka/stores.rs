//! The throughput of a store alone: batches of claims and completions, two in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy};
use onceward::{Fingerprint, Key, Scope, Store};

use crate::stage::per_second;

const TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const IN_FLIGHT: usize = 2;

pub(crate) struct Batches {
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) scope: String,
}

pub(crate) async fn alone<S: Store>(store: &Arc<S>, batches: Batches) -> f64 {
    let scope = Scope::parse(&batches.scope).unwrap();
    // Keys, tokens and fingerprints are made before the clock runs.
    let mut entropy = Entropy::system();
    let fingerprint = Some(Fingerprint::of(b"x"));
    let request = |number: usize| ClaimRequest {
        key: Key::of(&scope, number.to_string()).unwrap(),
        owner: entropy.token(),
        fingerprint,
        generation: 0,
    };
    let requests: Vec<_> = (0..batches.count).map(request).collect();
    let chunks: Vec<_> = requests.chunks(batches.size).map(<[_]>::to_vec).collect();
    let mut shares: [Vec<Vec<ClaimRequest>>; IN_FLIGHT] = Default::default();
    for (number, chunk) in chunks.into_iter().enumerate() {
        shares[number % IN_FLIGHT].push(chunk);
    }
    let started = Instant::now();
    let tasks = shares.map(|share| {
        let (store, scope) = (Arc::clone(store), scope.clone());
        tokio::spawn(async move {
            for chunk in share {
                claim_and_complete(&*store, &scope, &chunk).await;
            }
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    per_second(batches.count, started)
}

async fn claim_and_complete<S: Store>(store: &S, scope: &Scope, requests: &[ClaimRequest]) {
    let terms = ClaimTerms { lease: Duration::from_secs(30), max_attempts: 5, ttl: TTL };
    let claims = store.claim(scope, &terms, requests).await;
    let completion = |claim: Result<Claim, _>| match claim.unwrap() {
        Claim::Claimed(claimed) => CompleteRequest {
            fingerprint: requests[0].fingerprint,
            ..CompleteRequest::new(claimed.lease, TTL)
        },
        other => panic!("{other:?}"),
    };
    let completions: Vec<_> = claims.into_iter().map(completion).collect();
    for done in store.complete(scope, &completions).await {
        assert_eq!(done.unwrap(), Completion::Completed);
    }
}
