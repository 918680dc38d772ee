//! Checks of calls whose reply was lost: repeated with the same owner token, they answer as if they were the first.

use bytes::Bytes;

use super::StoreHarness;
use super::case::{Case, claimed};
use crate::store::{Burial, Claim, CompleteRequest, Completion, Failure, Reason, Renewal};

/// A repeated claim recognises itself: the same fence and attempt, and the lease that is left.
pub async fn a_repeated_claim_recognises_itself<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let request = case.request(case.key(1));
    let first = claimed(case.ask(request).await);
    case.advance(case.timing.lease / 2).await;
    let again = claimed(case.ask(request).await);
    assert_eq!(again.lease, first.lease);
    assert_eq!((again.attempt, again.lost, again.generation), (1, 0, 0));
    case.assert_left(again.lease_left, case.timing.lease / 2);
}

/// A claim repeated after its lease has run out is a new claim: one loss, a larger fence.
pub async fn a_claim_repeated_after_its_lease_is_a_new_claim<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let request = case.request(case.key(1));
    let first = claimed(case.ask(request).await);
    case.lapse().await;
    let again = claimed(case.ask(request).await);
    assert!(again.lease.fence > first.lease.fence);
    assert_eq!(again.lost, 1);
}

/// A claim for dead-lettering recognises itself too.
pub async fn a_repeated_claim_of_an_exhausted_key_recognises_itself<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    for _ in 0..case.terms.max_attempts {
        let _ = case.fail(case.claim(key).await.lease, "no luck").await;
    }
    let request = case.request(key);
    let Claim::Exhausted(first) = case.ask(request).await else { panic!("the attempts are used up") };
    let Claim::Exhausted(again) = case.ask(request).await else { panic!("the claim is its own") };
    assert_eq!(again.lease, first.lease);
    assert_eq!((again.reason, again.attempts), (first.reason, first.attempts));
    assert!(matches!(case.ask_for(key).await, Claim::InProgress { .. }), "it holds the key against others");
}

/// A repeated completion reports that it is one, and neither replaces the result nor restarts the TTL.
pub async fn a_repeated_completion_changes_nothing<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let request = |text: &'static str| CompleteRequest {
        result: Some(Bytes::from_static(text.as_bytes())),
        ..case.completion(claim.lease)
    };
    assert_eq!(case.complete_with(request("first")).await, Completion::Completed);
    case.advance(case.timing.lease).await;
    assert_eq!(case.complete_with(request("again")).await, Completion::Repeated);
    let Claim::Completed { result, age, .. } = case.ask_for(case.key(1)).await else {
        panic!("it is completed")
    };
    assert_eq!(result.as_deref(), Some(&b"first"[..]));
    case.assert_age(age, case.timing.lease);
}

/// A repeated renewal renews.
pub async fn a_repeated_renewal_renews<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    assert_eq!(case.renew_with(claim.lease, true).await, Renewal::Renewed);
    assert_eq!(case.renew_with(claim.lease, true).await, Renewal::Renewed);
    case.lapse().await;
    assert_eq!(case.claim(case.key(1)).await.attempt, 2, "started twice is started once");
}

/// A repeated failure counts once.
pub async fn a_repeated_failure_counts_once<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let first = case.fail(claim.lease, "first").await;
    assert!(matches!(first, Failure::Recorded { attempts: 1, .. }), "{first:?}");
    let again = case.fail(claim.lease, "again").await;
    assert!(matches!(again, Failure::Recorded { attempts: 1, .. }), "{again:?}");
    assert_eq!(case.content(case.key(1)).await.error.as_deref(), Some("first"));
}

/// A repeated terminal failure counts once and keeps its reason.
pub async fn a_repeated_terminal_failure_counts_once<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    for _ in 0..2 {
        let answer = case.fail_with(claim.lease, "hopeless", Some(Reason::Permanent)).await;
        assert!(matches!(answer, Failure::Recorded { attempts: 1, .. }), "{answer:?}");
    }
    assert_eq!(case.content(case.key(1)).await.reason, Some(Reason::Permanent));
}

/// A repeated burial finds the key dead.
pub async fn a_repeated_burial_finds_the_key_dead<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let _ = case.fail_with(claim.lease, "hopeless", Some(Reason::Permanent)).await;
    assert_eq!(case.bury(claim.lease).await, Burial::Dead);
    case.advance(case.timing.lease).await;
    assert_eq!(case.bury(claim.lease).await, Burial::Dead);
    case.assert_age(case.record(case.key(1)).await.last_age, case.timing.lease);
}

/// A repeated release is answered like the first, until another claims the key.
pub async fn a_repeated_release_answers_the_same<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    assert!(case.release(claim.lease).await);
    assert!(case.release(claim.lease).await);
    let _ = case.claim(case.key(1)).await;
    assert!(!case.release(claim.lease).await);
}
