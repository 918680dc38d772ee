//! Checks of claims, leases and their lapse.

use super::StoreHarness;
use super::case::{Case, claimed};
use crate::store::{Claim, ClaimRequest, KeyState, Reason, Renewal};

/// An unknown key is claimed as its first attempt, for the whole lease.
pub async fn an_unknown_key_is_claimed_as_its_first_attempt<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let request = ClaimRequest { generation: 4, ..case.request(case.key(1)) };
    let claim = claimed(case.ask(request).await);
    assert_eq!((claim.lease.key, claim.lease.owner), (request.key, request.owner));
    assert_eq!((claim.attempt, claim.lost, claim.generation), (1, 0, 4));
    assert!(claim.lease.fence > 0);
    case.assert_left(claim.lease_left, case.timing.lease);
}

/// A key in progress is not claimed by another; the answer reports how long the lease may last.
pub async fn a_key_in_progress_is_not_claimed_by_another<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let other = Case::new(harness).await;
    let key = case.key(1);
    let claim = case.claim(key).await;
    case.advance(case.timing.lease / 2).await;
    match other.ask_for(key).await {
        Claim::InProgress { retry_in } => case.assert_left(retry_in, case.timing.lease / 2),
        answer => panic!("expected the key to be in progress, got {answer:?}"),
    }
    assert_eq!(case.record(key).await.fence, claim.lease.fence);
}

/// A lease is live until its last moment and over from then on.
pub async fn a_lease_is_live_until_its_last_moment<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.claim(case.key(1)).await;
    case.advance(case.timing.lease - case.timing.tick).await;
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::InProgress { .. }));
    case.advance(case.timing.tick).await;
    let _ = case.claim(case.key(1)).await;
}

/// A lapsed lease is taken over with a larger fence and one more loss, but no attempt.
pub async fn a_lapsed_lease_is_taken_over_with_a_larger_fence<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let first = case.claim(case.key(1)).await;
    case.lapse().await;
    let second = case.claim(case.key(1)).await;
    assert!(second.lease.fence > first.lease.fence);
    assert_eq!((second.attempt, second.lost), (1, 1));
    case.assert_left(second.lease_left, case.timing.lease);
}

/// Lapses of runs that were not marked as started are counted, and never use up attempts.
pub async fn unstarted_lapses_are_counted_but_use_no_attempt<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let mut fence = case.claim(case.key(1)).await.lease.fence;
    for lost in 1..=case.terms.max_attempts + 1 {
        case.lapse().await;
        let claim = case.claim(case.key(1)).await;
        assert_eq!((claim.attempt, claim.lost), (1, lost));
        assert!(claim.lease.fence > fence);
        fence = claim.lease.fence;
    }
}

/// A lapse after the run was marked as started counts as an attempt; the mark holds for that claim only.
pub async fn a_lapse_after_the_start_counts_as_an_attempt<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let first = case.claim(case.key(1)).await;
    assert_eq!(case.renew_with(first.lease, true).await, Renewal::Renewed);
    assert_eq!(case.renew_with(first.lease, false).await, Renewal::Renewed);
    case.lapse().await;
    let second = case.claim(case.key(1)).await;
    assert_eq!((second.attempt, second.lost), (2, 1), "a later renewal does not unmark the start");
    case.lapse().await;
    let third = case.claim(case.key(1)).await;
    assert_eq!((third.attempt, third.lost), (2, 2), "the second claim was not marked");
}

/// Runs that end with the death of their process use up the attempts in the end, with the reason for it.
pub async fn lapses_of_started_runs_use_up_the_attempts<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for _ in 0..case.terms.max_attempts {
        let claim = case.claim(case.key(1)).await;
        assert_eq!(case.renew_with(claim.lease, true).await, Renewal::Renewed);
        case.lapse().await;
    }
    let exhausted = case.exhaust(case.key(1)).await;
    assert_eq!(exhausted.reason, Reason::ProcessLost);
    assert_eq!((exhausted.attempts, exhausted.lost), (case.terms.max_attempts, case.terms.max_attempts));
}

/// A renewal prolongs the lease from now on.
pub async fn a_renewal_prolongs_the_lease_from_now<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.advance(case.timing.lease / 2).await;
    assert_eq!(case.renew(claim.lease).await, Renewal::Renewed);
    case.advance(case.timing.lease / 2 + case.timing.tick).await;
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::InProgress { .. }));
    case.advance(case.timing.lease / 2).await;
    assert_eq!(case.claim(case.key(1)).await.lost, 1);
}

/// A lease that has run out but was not taken over is revived by a renewal.
pub async fn a_lapsed_lease_nobody_took_over_is_revived_by_a_renewal<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.advance(case.timing.lease + case.timing.tick).await;
    assert_eq!(case.renew(claim.lease).await, Renewal::Renewed);
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::InProgress { .. }));
    let record = case.record(case.key(1)).await;
    assert_eq!((record.lost, record.fence), (0, claim.lease.fence));
}

/// Releasing a claim changes neither attempts nor losses nor the failure, and the key can be claimed at once.
pub async fn a_release_changes_nothing_but_frees_the_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.claim(key).await;
    case.lapse().await;
    let _ = case.fail(case.claim(key).await.lease, "first try").await;
    let claim = case.claim(key).await;
    assert!(case.release(claim.lease).await);
    let record = case.record(key).await;
    assert_eq!((record.state, record.attempts, record.lost), (KeyState::Absent, 1, 1));
    assert_eq!(record.error.as_deref(), Some("first try"));
    let next = case.claim(key).await;
    assert_eq!((next.attempt, next.lost), (claim.attempt, claim.lost));
    assert!(next.lease.fence > claim.lease.fence);
}

/// A record outlives its lease: fence and losses are still there long after, until the TTL counted from the lease's end.
pub async fn a_record_outlives_its_lease<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.lease + case.timing.ttl);
    case.lapse().await;
    case.advance(case.timing.ttl - case.timing.tick).await;
    let record = case.record(case.key(1)).await;
    assert_eq!((record.state, record.fence), (KeyState::Pending, claim.lease.fence));
    assert_eq!(record.lease_left, Some(std::time::Duration::ZERO));
    assert_eq!(case.claim(case.key(1)).await.lost, 1);
}

/// An unfinished record past its TTL counts as absent: its losses are forgotten, but the next fence is larger.
pub async fn an_expired_unfinished_record_counts_as_absent<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.lapse().await;
    case.advance(case.timing.ttl).await;
    assert_eq!(case.inspect(case.key(1)).await, None);
    let next = case.claim(case.key(1)).await;
    assert_eq!((next.attempt, next.lost), (1, 0));
    assert!(next.lease.fence > claim.lease.fence);
}

/// A renewal moves the end of the record's life too: it expires its TTL after the end of the prolonged lease.
pub async fn a_renewed_record_lives_as_long_after_its_new_lease<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.advance(case.timing.lease / 2).await;
    assert_eq!(case.renew(claim.lease).await, Renewal::Renewed);
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.lease + case.timing.ttl);
}
