//! Checks of failures: attempts, exhaustion, the terminal failure and the burial.

use super::StoreHarness;
use super::case::Case;
use crate::store::{Burial, BuryRequest, Claim, Failure, KeyState, Reason, Store};

/// A failure counts an attempt and ends the claim: the key can be claimed at once.
pub async fn a_failure_counts_an_attempt_and_frees_the_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let first = case.claim(case.key(1)).await;
    case.advance(case.timing.lease / 2).await;
    match case.fail(first.lease, "no luck").await {
        Failure::Recorded { attempts: 1, first_age } => case.assert_age(first_age, case.timing.lease / 2),
        answer => panic!("expected a recorded failure, got {answer:?}"),
    }
    let record = case.record(case.key(1)).await;
    assert_eq!((record.state, record.attempts, record.lost), (KeyState::Failed, 1, 0));
    assert_eq!(record.error.as_deref(), Some("no luck"));
    let second = case.claim(case.key(1)).await;
    assert_eq!((second.attempt, second.lost), (2, 0));
    assert!(second.lease.fence > first.lease.fence);
}

/// A failure is recorded even if the lease has run out, as long as no other owner took over; the lapse is not counted
/// too.
pub async fn a_failure_after_the_lease_counts_once<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let _ = case.renew_with(claim.lease, true).await;
    case.lapse().await;
    assert!(matches!(case.fail(claim.lease, "late").await, Failure::Recorded { attempts: 1, .. }));
    let next = case.claim(case.key(1)).await;
    assert_eq!((next.attempt, next.lost), (2, 0));
}

/// A failed record expires its TTL after the failure.
pub async fn a_failed_record_expires_after_its_ttl<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Failed, None).await;
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.ttl);
    case.advance(case.timing.ttl).await;
    assert_eq!(case.claim(case.key(1)).await.attempt, 1);
}

/// A key whose attempts are used up is claimed for dead-lettering only, and by a single owner.
pub async fn used_up_attempts_exhaust_the_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    for attempt in 1..=case.terms.max_attempts {
        let claim = case.claim(key).await;
        assert_eq!(claim.attempt, attempt);
        case.advance(case.timing.lease / 10).await;
        let _ = case.fail(claim.lease, &format!("failure {attempt}")).await;
    }
    let first = case.exhaust(key).await;
    assert_eq!(
        (first.reason, first.attempts, first.lost),
        (Reason::AttemptsExhausted, case.terms.max_attempts, 0)
    );
    assert_eq!(first.error, Some(format!("failure {}", case.terms.max_attempts)));
    case.assert_age(first.first_age, case.timing.lease / 10 * case.terms.max_attempts);
    assert_eq!(case.record(key).await.state, KeyState::Terminal);
    assert!(matches!(case.ask_for(key).await, Claim::InProgress { .. }));
    case.lapse().await;
    let second = case.exhaust(key).await;
    assert!(second.lease.fence > first.lease.fence);
    assert_eq!(case.bury(first.lease).await, Burial::Lost, "the burial of the lapsed claim comes too late");
    assert_eq!(case.bury(second.lease).await, Burial::Dead);
}

/// The limit of attempts is the claimer's own: a released key is exhausted for a claimer with a lower one.
pub async fn the_limit_of_attempts_comes_with_the_claim<H: StoreHarness>(harness: &H) {
    let mut case = Case::new(harness).await;
    let key = case.key(1);
    for _ in 0..2 {
        let _ = case.fail(case.claim(key).await.lease, "no luck").await;
    }
    let claim = case.claim(key).await;
    assert!(case.release(claim.lease).await);
    case.terms.max_attempts = 2;
    assert!(matches!(case.ask_for(key).await, Claim::Exhausted(_)));
}

/// A permanent failure keeps its claim for the dead-letter publish, and after its lease only another publish is due.
pub async fn a_permanent_failure_leaves_no_further_attempt<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let lease = case.bring(case.key(1), KeyState::Terminal, None).await;
    match case.ask_for(case.key(1)).await {
        Claim::InProgress { retry_in } => case.assert_left(retry_in, case.timing.lease),
        answer => panic!("expected the publish to be in progress, got {answer:?}"),
    }
    case.lapse().await;
    let exhausted = case.exhaust(case.key(1)).await;
    assert_eq!((exhausted.reason, exhausted.attempts), (Reason::Permanent, 1));
    assert_eq!(exhausted.error.as_deref(), Some("hopeless"));
    assert!(exhausted.lease.fence > lease.fence);
    case.assert_age(exhausted.first_age, case.timing.lease);
}

/// Every reason for a terminal failure is kept.
pub async fn every_reason_is_kept<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, reason) in (1..).zip(Reason::ALL) {
        let claim = case.claim(case.key(n)).await;
        let _ = case.fail_with(claim.lease, "", Some(reason)).await;
        assert_eq!(case.record(case.key(n)).await.reason, Some(reason));
        assert_eq!(case.bury(claim.lease).await, Burial::Dead);
        let answer = case.ask_for(case.key(n)).await;
        assert!(matches!(answer, Claim::Dead { reason: kept, .. } if kept == reason), "{answer:?}");
    }
}

/// A buried key is dead: every claim finds the reason, the age and the generation.
pub async fn a_buried_key_is_dead<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Dead, None).await;
    case.lapse().await;
    match case.ask_for(case.key(1)).await {
        Claim::Dead { reason: Reason::Permanent, age, generation: 0 } => {
            case.assert_age(age, case.timing.lease)
        }
        answer => panic!("expected a dead key, got {answer:?}"),
    }
    let record = case.record(case.key(1)).await;
    assert_eq!((record.attempts, record.error.as_deref()), (1, Some("hopeless")));
    assert_eq!(record.lease_left, None);
}

/// A dead record lives for the burial's TTL, then the key is unknown.
pub async fn a_dead_record_lives_for_the_burials_ttl<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let lease = case.bring(case.key(1), KeyState::Terminal, None).await;
    let request = BuryRequest { lease, ttl: case.timing.lease * 2 };
    assert_eq!(super::case::one(case.store.bury(&case.scope, &[request]).await), Burial::Dead);
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.lease * 2);
    case.advance(case.timing.lease * 2 - case.timing.tick).await;
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Dead { .. }));
    case.advance(case.timing.tick).await;
    assert_eq!(case.claim(case.key(1)).await.attempt, 1);
}

/// A burial after the lease has run out still buries, as long as no other owner took over.
pub async fn a_late_burial_nobody_forestalled_buries<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let lease = case.bring(case.key(1), KeyState::Terminal, None).await;
    case.lapse().await;
    assert_eq!(case.bury(lease).await, Burial::Dead);
}

/// The first 1,024 bytes of an error are kept, cut at a character.
pub async fn a_long_error_is_cut_at_a_character<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let text = format!("x{}", "é".repeat(32 * 1024));
    let claim = case.claim(case.key(1)).await;
    assert!(matches!(case.fail(claim.lease, &text).await, Failure::Recorded { .. }));
    let kept = case.record(case.key(1)).await.error.expect("the error is kept");
    assert_eq!(kept.len(), 1_023);
    assert!(text.starts_with(&kept));
}

/// Errors are returned as they were stored, with any characters.
pub async fn errors_may_hold_any_character<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, text) in (1..).zip(["", "'; DROP TABLE keys; --", "Zürich 日本 🦀\n\t\u{7f}", "%s {} $1 ?"])
    {
        let claim = case.claim(case.key(n)).await;
        assert!(matches!(case.fail(claim.lease, text).await, Failure::Recorded { .. }));
        assert_eq!(case.record(case.key(n)).await.error.as_deref(), Some(text));
    }
}
