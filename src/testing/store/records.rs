//! Checks of inspect, list, stats, purge and forget, and of the separation of scopes.

use super::StoreHarness;
use super::case::{Case, claimed};
use crate::key::Key;
use crate::store::{Claim, ClaimRequest, Completion, KeyState, ListQuery, Store, StoreAdmin};

const ALL: ListQuery = ListQuery { state: None, after: None, limit: 10_000 };

async fn listed<H: StoreHarness>(case: &Case<'_, H>, query: ListQuery) -> Vec<Key> {
    let records = case.store.list(&case.scope, &query).await.expect("the store answers");
    for record in &records {
        let alone = case.record(record.key).await;
        assert_eq!((record.state, record.fence), (alone.state, alone.fence));
    }
    records.into_iter().map(|record| record.key).collect()
}

/// An inspection shows the state, the lease that is left and the ages, and changes nothing.
pub async fn an_inspection_shows_the_record<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    assert_eq!(case.inspect(case.key(1)).await, None);
    let claim = claimed(case.ask(ClaimRequest { generation: 2, ..case.request(case.key(1)) }).await);
    case.advance(case.timing.lease / 2).await;
    let record = case.record(case.key(1)).await;
    assert_eq!((record.key, record.state, record.fence), (case.key(1), KeyState::Pending, claim.lease.fence));
    assert_eq!((record.attempts, record.lost, record.generation), (0, 0, 2));
    assert_eq!((record.reason, record.error, record.result_bytes), (None, None, None));
    case.assert_left(record.lease_left.expect("a pending key has a lease"), case.timing.lease / 2);
    case.assert_age(record.first_age, case.timing.lease / 2);
    case.assert_age(record.last_age, case.timing.lease / 2);
    case.assert_left(record.expires_in, case.timing.lease / 2 + case.timing.ttl);
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    let record = case.record(case.key(1)).await;
    case.assert_age(record.first_age, case.timing.lease / 2);
    assert!(record.last_age <= case.timing.tick);
}

/// Records are listed in key order, page by page, and by state.
pub async fn records_are_listed_in_key_order<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let mut keys: Vec<Key> = (0..20).map(|n| case.key(n)).collect();
    for (n, key) in keys.iter_mut().enumerate() {
        let state = if n % 4 == 0 { KeyState::Failed } else { KeyState::Completed };
        let _ = case.bring(*key, state, None).await;
        *key = case.harness.listed_key(*key, state);
    }
    let mut failed: Vec<Key> = keys.iter().copied().step_by(4).collect();
    failed.sort_unstable();
    keys.sort_unstable();
    assert_eq!(listed(&case, ALL).await, keys);
    assert_eq!(listed(&case, ListQuery { limit: 7, ..ALL }).await, keys[..7]);
    let page = ListQuery { after: Some(keys[6]), limit: 7, ..ALL };
    assert_eq!(listed(&case, page).await, keys[7..14]);
    assert_eq!(listed(&case, ListQuery { after: Some(keys[19]), ..ALL }).await, []);
    assert_eq!(listed(&case, ListQuery { state: Some(KeyState::Failed), ..ALL }).await, failed);
    let page = ListQuery { state: Some(KeyState::Failed), after: Some(failed[1]), limit: 2 };
    assert_eq!(listed(&case, page).await, failed[2..4]);
    assert_eq!(listed(&case, ListQuery { state: Some(KeyState::Dead), ..ALL }).await, []);
}

/// Statistics count the keys of every state.
pub async fn statistics_count_every_state<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    assert_eq!(case.store.stats(&case.scope).await.expect("the store answers").total(), 0);
    let mut n = 0;
    for state in KeyState::ALL {
        for _ in 0..=state.code() {
            let _ = case.bring(case.key(n), state, None).await;
            n += 1;
        }
    }
    let stats = case.store.stats(&case.scope).await.expect("the store answers");
    for state in KeyState::ALL {
        assert_eq!(stats.get(state), u64::from(state.code()) + 1, "{state:?}");
    }
    assert_eq!(stats.total(), u64::from(n));
}

/// Expired records are neither listed nor counted, removed or not.
pub async fn expired_records_are_neither_listed_nor_counted<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        let _ = case.bring(case.key(n), state, None).await;
    }
    case.lapse().await;
    case.advance(case.timing.ttl).await;
    assert_eq!(listed(&case, ALL).await, []);
    assert_eq!(case.store.stats(&case.scope).await.expect("the store answers").total(), 0);
}

/// A purge removes expired records and no others, at most up to its limit.
pub async fn a_purge_removes_expired_records_only<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for n in 0..10 {
        let _ = case.bring(case.key(n), KeyState::Completed, None).await;
    }
    let prolonged = case.claim(case.key(12)).await;
    case.advance(case.timing.lease / 2).await;
    assert_eq!(case.complete(prolonged.lease).await, Completion::Completed);
    case.advance(case.timing.ttl / 2 - case.timing.lease / 2).await;
    let _ = case.bring(case.key(10), KeyState::Completed, None).await;
    let pending = case.claim(case.key(11)).await;
    case.advance(case.timing.ttl / 2).await;
    if let Some(expiring) = case.store.expiring() {
        let first = expiring.purge(4).await.expect("the store answers");
        assert!(first <= 4, "{first} were removed where 4 were allowed");
        let mut removed = first;
        for _ in 0..20 {
            removed += expiring.purge(4).await.expect("the store answers");
        }
        assert_eq!(removed, 10, "a store that does not expire by itself removes what has expired");
    }
    for n in [10, 12] {
        assert!(matches!(case.ask_for(case.key(n)).await, Claim::Completed { .. }));
    }
    assert_eq!(case.record(case.key(11)).await.fence, pending.lease.fence);
    assert_eq!(case.claim(case.key(0)).await.attempt, 1);
}

/// Fences grow across expiry and purge.
pub async fn fences_grow_across_a_purge<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let mut fence = 0;
    for n in 0..5 {
        let claim = case.claim(case.key(n)).await;
        fence = fence.max(claim.lease.fence);
        assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    }
    case.advance(case.timing.ttl).await;
    if let Some(expiring) = case.store.expiring() {
        let _ = expiring.purge(100).await.expect("the store answers");
    }
    for n in 0..5 {
        assert!(case.claim(case.key(n)).await.lease.fence > fence);
    }
}

/// A forgotten key runs again from its first attempt, regardless of its state; an unknown one cannot be forgotten.
pub async fn a_forgotten_key_runs_again<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    assert!(!case.forget(case.key(0)).await);
    for (n, state) in (1..).zip(KeyState::ALL) {
        let key = case.key(n);
        let _ = case.bring(key, state, None).await;
        assert!(case.forget(key).await, "{state:?}");
        assert!(!case.forget(key).await, "{state:?}: forgotten already");
        assert_eq!(case.inspect(key).await, None);
        let claim = case.claim(key).await;
        assert_eq!((claim.attempt, claim.lost, claim.generation), (1, 0, 0), "{state:?}");
    }
}

/// An expired record is not there to forget.
pub async fn an_expired_record_is_not_there_to_forget<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Completed, None).await;
    case.advance(case.timing.ttl).await;
    assert!(!case.forget(case.key(1)).await);
}

/// Fences go on growing across any number of claims, releases and forgets, even if the clock stands still.
pub async fn fences_grow_across_a_forget<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let mut fence = 0;
    for round in 0..20 {
        let claim = case.claim(key).await;
        assert!(claim.lease.fence > fence, "round {round}");
        fence = claim.lease.fence;
        assert!(case.release(claim.lease).await);
        let claim = case.claim(key).await;
        assert!(claim.lease.fence > fence, "round {round}, after the release");
        fence = claim.lease.fence;
        assert!(case.forget(key).await);
    }
}

/// Fences are at least the store's clock in microseconds, so that they grow even if the whole store is lost.
pub async fn fences_grow_with_the_clock<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let first = case.claim(case.key(1)).await.lease.fence;
    case.advance(case.timing.lease).await;
    let second = case.claim(case.key(2)).await.lease.fence;
    let grown = u128::from(second - first);
    assert!(grown >= case.timing.lease.as_micros(), "grown by {grown} µs in {:?}", case.timing.lease);
}

/// The same key in two scopes is two keys.
pub async fn scopes_are_apart<H: StoreHarness>(harness: &H) {
    let billing = Case::of_scope(harness, "billing").await;
    let audit = Case::of_scope(harness, "audit/tenant=1,region=eu").await;
    let key = billing.key(1);
    let lease = billing.bring(key, KeyState::Completed, None).await;
    assert_eq!(audit.inspect(key).await, None);
    assert_eq!(listed(&audit, ALL).await, []);
    assert!(!audit.forget(key).await);
    let claim = audit.claim(key).await;
    assert_eq!(claim.attempt, 1);
    assert!(!audit.release(lease).await);
    assert_eq!(audit.complete(lease).await, Completion::HeldByAnother);
    assert_eq!(listed(&audit, ALL).await, [key]);
    let stats = audit.store.stats(&audit.scope).await.expect("the store answers");
    assert_eq!((stats.total(), stats.get(KeyState::Pending)), (1, 1));
    assert!(audit.forget(key).await);
    assert!(matches!(billing.ask_for(key).await, Claim::Completed { .. }));
}
