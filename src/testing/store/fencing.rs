//! Checks of compare-and-set: every write compares key, owner token, fence and state; a late write changes nothing.

use super::StoreHarness;
use super::case::Case;
use crate::key::Key;
use crate::store::{Burial, Completion, Failure, KeyState, Lease, OwnerToken, Reason, Renewal};

/// Asserts that no write of `lease` gets through, and that the record stays as it is.
async fn assert_every_write_is_refused<H: StoreHarness>(case: &Case<'_, H>, lease: Lease, why: &str) {
    let before = case.content(lease.key).await;
    assert_eq!(case.renew_with(lease, true).await, Renewal::Lost, "renew: {why}");
    assert!(!case.release(lease).await, "release: {why}");
    assert_eq!(case.fail(lease, "late").await, Failure::Lost, "fail: {why}");
    assert_eq!(case.fail_with(lease, "late", Some(Reason::Permanent)).await, Failure::Lost, "fail: {why}");
    assert_eq!(case.bury(lease).await, Burial::Lost, "bury: {why}");
    assert_eq!(case.complete(lease).await, Completion::HeldByAnother, "complete: {why}");
    assert_eq!(case.content(lease.key).await, before, "{why}");
}

/// A claim that was taken over can neither complete, renew, release, fail nor bury.
pub async fn a_claim_that_was_taken_over_can_write_nothing<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let old = case.claim(case.key(1)).await.lease;
    case.lapse().await;
    let new = case.claim(case.key(1)).await.lease;
    assert_every_write_is_refused(&case, old, "another holds the key").await;
    assert_eq!(case.complete(new).await, Completion::Completed, "the new owner is not disturbed");
}

/// A claim that was taken over by its own repeat, with the same owner token, is fenced off as well.
pub async fn the_fence_tells_two_claims_of_one_token_apart<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let request = case.request(case.key(1));
    let old = super::case::claimed(case.ask(request).await).lease;
    case.lapse().await;
    let new = super::case::claimed(case.ask(request).await).lease;
    assert_ne!(old, new);
    assert_every_write_is_refused(&case, old, "its repeat holds the key").await;
}

/// No write goes through under the right fence with another owner token.
pub async fn every_write_needs_the_owner_token<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip([KeyState::Pending, KeyState::Failed, KeyState::Terminal]) {
        let lease = case.bring(case.key(n), state, None).await;
        let forged = Lease { owner: case.token(), ..lease };
        assert_every_write_is_refused(&case, forged, &format!("a foreign token, {state:?}")).await;
        let nobody = Lease { owner: OwnerToken::from_bytes([0; 16]), ..lease };
        assert_every_write_is_refused(&case, nobody, &format!("an empty token, {state:?}")).await;
    }
}

/// No write goes through with the right owner token under another fence, smaller or larger.
pub async fn every_write_needs_the_fence<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip([KeyState::Pending, KeyState::Failed, KeyState::Terminal]) {
        let lease = case.bring(case.key(n), state, None).await;
        for fence in [lease.fence - 1, lease.fence + 1] {
            let forged = Lease { fence, ..lease };
            assert_every_write_is_refused(&case, forged, &format!("a foreign fence, {state:?}")).await;
        }
    }
}

/// A write is refused in a state it does not fit, even to the claim that brought the key there.
pub async fn every_write_needs_its_state<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        let lease = case.bring(case.key(n), state, None).await;
        let before = case.content(lease.key).await;
        let pending = state == KeyState::Pending;
        if !pending {
            assert_eq!(case.renew_with(lease, true).await, Renewal::Lost, "renew: {state:?}");
        }
        if !matches!(state, KeyState::Pending | KeyState::Absent) {
            assert!(!case.release(lease).await, "release: {state:?}");
        }
        if !matches!(state, KeyState::Pending | KeyState::Failed | KeyState::Terminal) {
            assert_eq!(case.fail(lease, "late").await, Failure::Lost, "fail: {state:?}");
        }
        if !matches!(state, KeyState::Terminal | KeyState::Dead) {
            assert_eq!(case.bury(lease).await, Burial::Lost, "bury: {state:?}");
        }
        if matches!(state, KeyState::Failed | KeyState::Terminal) {
            assert_eq!(case.complete(lease).await, Completion::HeldByAnother, "complete: {state:?}");
        }
        assert_eq!(case.content(lease.key).await, before, "{state:?}");
    }
}

/// A late renewal or failure of a key that was completed by another changes nothing.
pub async fn late_writes_leave_a_completed_key_alone<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    late_writes_leave_alone(&case, case.key(1), KeyState::Completed).await;
}

/// A late renewal or failure of a key that died in another's hands changes nothing.
pub async fn late_writes_leave_a_dead_key_alone<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    late_writes_leave_alone(&case, case.key(1), KeyState::Dead).await;
}

async fn late_writes_leave_alone<H: StoreHarness>(case: &Case<'_, H>, key: Key, state: KeyState) {
    let old = case.claim(key).await.lease;
    case.lapse().await;
    let new = case.bring(key, state, None).await;
    assert_ne!(old, new);
    let before = case.content(key).await;
    assert_eq!(case.renew_with(old, true).await, Renewal::Lost);
    assert!(!case.release(old).await);
    assert_eq!(case.fail(old, "late").await, Failure::Lost);
    assert_eq!(case.bury(old).await, Burial::Lost);
    assert_eq!(case.complete(old).await, Completion::DoneByAnother);
    assert_eq!(case.content(key).await, before);
}

/// Nothing but a completion is written for a key that is not known.
pub async fn writes_of_an_unknown_key_change_nothing<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let lease = case.claim(case.key(1)).await.lease;
    assert!(case.forget(case.key(1)).await);
    assert_eq!(case.renew_with(lease, true).await, Renewal::Lost);
    assert!(!case.release(lease).await);
    assert_eq!(case.fail(lease, "late").await, Failure::Lost);
    assert_eq!(case.bury(lease).await, Burial::Lost);
    assert_eq!(case.inspect(case.key(1)).await, None);
}

/// Nothing but a completion is written for a record past its TTL.
pub async fn writes_of_an_expired_record_change_nothing<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let pending = case.claim(case.key(1)).await.lease;
    let terminal = case.bring(case.key(2), KeyState::Terminal, None).await;
    case.lapse().await;
    case.advance(case.timing.ttl).await;
    assert_eq!(case.renew_with(pending, true).await, Renewal::Lost);
    assert!(!case.release(pending).await);
    assert_eq!(case.fail(pending, "late").await, Failure::Lost);
    assert_eq!(case.bury(terminal).await, Burial::Lost);
    assert_eq!(case.inspect(case.key(1)).await, None);
    assert_eq!(case.inspect(case.key(2)).await, None);
}
