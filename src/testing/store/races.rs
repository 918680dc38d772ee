//! Checks under contention: many workers, the same keys, at the same time. They run on several threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::StoreHarness;
use super::case::{Case, all};
use crate::key::{Key, Scope};
use crate::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, Lease, Store};

const WORKERS: u64 = 8;

/// Claims `keys` in one batch with fresh tokens, in an order of the worker's own.
async fn contend<S: Store>(
    store: &S,
    scope: &Scope,
    terms: &ClaimTerms,
    keys: &[Key],
    rng: &mut fastrand::Rng,
) -> Vec<(Key, Claim)> {
    let mut entropy = Entropy::system();
    let mut keys = keys.to_vec();
    rng.shuffle(&mut keys);
    let batch: Vec<ClaimRequest> = keys
        .iter()
        .map(|&key| ClaimRequest { key, owner: entropy.token(), fingerprint: None, generation: 0 })
        .collect();
    keys.into_iter().zip(all(store.claim(scope, terms, &batch).await)).collect()
}

/// Of many workers that claim the same keys at the same time, exactly one gets each key; over many rounds of claims
/// and releases each key's fences grow.
pub async fn of_many_claimers_exactly_one_wins_each_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let keys: Vec<Key> = (0..50).map(|n| case.key(n)).collect();
    let mut fences: HashMap<Key, u64> = HashMap::new();
    for round in 0..5 {
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            let store = harness.store().await;
            let (scope, terms, keys) = (case.scope.clone(), case.terms, keys.clone());
            workers.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(worker);
                contend(&store, &scope, &terms, &keys, &mut rng).await
            });
        }
        let mut won: Vec<Lease> = Vec::new();
        let mut held = 0;
        for (key, claim) in workers.join_all().await.into_iter().flatten() {
            match claim {
                Claim::Claimed(claimed) => {
                    assert_eq!(claimed.lease.key, key);
                    won.push(claimed.lease);
                }
                Claim::InProgress { .. } => held += 1,
                other => panic!("expected the key to be claimed or in progress, got {other:?}"),
            }
        }
        won.sort_unstable_by_key(|lease| lease.key);
        assert!(won.windows(2).all(|pair| pair[0].key != pair[1].key), "round {round}: a key was won twice");
        assert_eq!((won.len(), held), (keys.len(), keys.len() * (WORKERS as usize - 1)));
        for lease in &won {
            let earlier = fences.insert(lease.key, lease.fence).unwrap_or(0);
            assert!(lease.fence > earlier, "round {round}: a fence did not grow");
        }
        assert!(all(case.store.release(&case.scope, &won).await).into_iter().all(|released| released));
    }
}

/// Workers that claim and release as fast as they can never hold a key at the same time, and every claim of a key has
/// a larger fence than the one before.
pub async fn claims_of_one_key_never_overlap<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let keys: Arc<Vec<Key>> = Arc::new((0..4).map(|n| case.key(n)).collect());
    let held: Arc<Vec<AtomicBool>> = Arc::new(keys.iter().map(|_| AtomicBool::new(false)).collect());
    let fences: Arc<Vec<AtomicU64>> = Arc::new(keys.iter().map(|_| AtomicU64::new(0)).collect());
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let store = harness.store().await;
        let (scope, terms) = (case.scope.clone(), case.terms);
        let (keys, held, fences) = (keys.clone(), held.clone(), fences.clone());
        workers.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(worker);
            let mut claims = 0_u64;
            for _ in 0..40 {
                let mut won = Vec::new();
                for (key, claim) in contend(&store, &scope, &terms, &keys, &mut rng).await {
                    let Claim::Claimed(claimed) = claim else { continue };
                    let n = keys.iter().position(|other| *other == key).expect("it was asked for");
                    assert!(!held[n].swap(true, Ordering::SeqCst), "two workers hold one key");
                    let earlier = fences[n].swap(claimed.lease.fence, Ordering::SeqCst);
                    assert!(claimed.lease.fence > earlier, "a fence did not grow");
                    won.push((n, claimed.lease));
                }
                tokio::task::yield_now().await;
                claims += won.len() as u64;
                for (n, lease) in won {
                    held[n].store(false, Ordering::SeqCst);
                    assert!(all(store.release(&scope, &[lease]).await)[0]);
                }
            }
            claims
        });
    }
    let claims: u64 = workers.join_all().await.into_iter().sum();
    assert!(claims >= keys.len() as u64, "no worker claimed a key");
}

/// Of many workers that complete a key as fast as they can claim it, exactly one does; all others find it done.
pub async fn a_key_is_completed_exactly_once<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let keys: Arc<Vec<Key>> = Arc::new((0..200).map(|n| case.key(n)).collect());
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let store = harness.store().await;
        let (scope, terms, keys) = (case.scope.clone(), case.terms, keys.clone());
        workers.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(worker);
            let (mut completed, mut open) = (0, keys.to_vec());
            for _ in 0..10_000 {
                if open.is_empty() {
                    return completed;
                }
                let mut batch = open.clone();
                rng.shuffle(&mut batch);
                batch.truncate(20);
                let mut requests = Vec::new();
                for (key, claim) in contend(&store, &scope, &terms, &batch, &mut rng).await {
                    match claim {
                        Claim::Claimed(claimed) => {
                            requests.push(CompleteRequest::new(claimed.lease, terms.ttl))
                        }
                        Claim::Completed { .. } => open.retain(|other| *other != key),
                        Claim::InProgress { .. } => {}
                        other => panic!("expected the key to be claimed, in progress or done, got {other:?}"),
                    }
                }
                for answer in all(store.complete(&scope, &requests).await) {
                    assert_eq!(answer, Completion::Completed);
                    completed += 1;
                }
            }
            panic!("the keys did not come to an end");
        });
    }
    let completed: usize = workers.join_all().await.into_iter().sum();
    assert_eq!(completed, keys.len());
}
