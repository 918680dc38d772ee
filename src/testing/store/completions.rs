//! Checks of completions: every row of the table of what one may find, results, and the TTL that counts from here.

use std::time::Duration;

use bytes::Bytes;

use super::StoreHarness;
use super::case::Case;
use crate::key::Fingerprint;
use crate::store::{
    Burial, Claim, ClaimRequest, CompleteRequest, Completion, KeyState, Reason, Renewal, TraceContext,
};

/// A pending key is completed by its claim, and from then on every claim finds the effect done.
pub async fn a_claim_completes_its_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    case.lapse().await;
    match case.ask_for(case.key(1)).await {
        Claim::Completed { result: None, trace: None, age } => case.assert_age(age, case.timing.lease),
        answer => panic!("expected a completed key without result, got {answer:?}"),
    }
}

/// A completion is seen by another worker at once.
pub async fn a_completion_is_seen_by_another_worker<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let other = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    assert!(matches!(other.ask_for(case.key(1)).await, Claim::Completed { .. }));
    assert_eq!(other.complete(claim.lease).await, Completion::Repeated);
}

/// A claim completes its key even if the lease has run out, as long as no newer fence was given out.
pub async fn a_lapsed_claim_nobody_took_over_completes<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.lapse().await;
    case.lapse().await;
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Completed { .. }));
}

/// A key that failed before is completed by a later attempt, and its error is of no more account.
pub async fn a_later_attempt_completes<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Failed, None).await;
    let claim = case.claim(case.key(1)).await;
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Completed { .. }));
    assert_eq!(case.record(case.key(1)).await.reason, None);
}

/// The completion of a forgotten key inserts the record, with the claim's own fence, fingerprint and generation.
pub async fn the_completion_of_a_forgotten_key_inserts_it<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let claim = case.claim(key).await;
    assert!(case.forget(key).await);
    let request = CompleteRequest {
        result: Some(Bytes::from_static(b"done")),
        fingerprint: Some(Fingerprint::of(b"payload")),
        generation: 2,
        ..case.completion(claim.lease)
    };
    assert_eq!(case.complete_with(request.clone()).await, Completion::Inserted);
    let record = case.record(key).await;
    assert_eq!((record.state, record.fence, record.generation), (KeyState::Completed, claim.lease.fence, 2));
    case.assert_left(record.expires_in, case.timing.ttl);
    let other = ClaimRequest { fingerprint: Some(Fingerprint::of(b"another")), ..case.request(key) };
    assert_eq!(case.ask(other).await, Claim::Mismatch);
    let Claim::Completed { result, .. } = case.ask_for(key).await else { panic!("it is completed") };
    assert_eq!(result.as_deref(), Some(&b"done"[..]));
    assert_eq!(case.complete_with(request).await, Completion::Repeated);
}

/// The completion of a record past its TTL inserts it again.
pub async fn the_completion_of_an_expired_record_inserts_it<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.lapse().await;
    case.advance(case.timing.ttl).await;
    assert_eq!(case.complete(claim.lease).await, Completion::Inserted);
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Completed { .. }));
}

/// The completion of a key that is free again (its claim was released) inserts it: the effect has happened.
pub async fn the_completion_of_a_free_key_inserts_it<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let old = case.claim(case.key(1)).await;
    case.lapse().await;
    let new = case.claim(case.key(1)).await;
    assert!(case.release(new.lease).await);
    assert_eq!(case.complete(old.lease).await, Completion::Inserted);
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Completed { .. }));
    assert!(case.forget(case.key(1)).await);
    assert!(case.claim(case.key(1)).await.lease.fence > new.lease.fence, "the larger fence is not forgotten");
}

/// A completion that finds the key completed by another owner reports it and changes nothing.
pub async fn a_key_completed_by_another_stays_the_others<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let old = case.claim(key).await;
    case.lapse().await;
    let new = case.claim(key).await;
    let request = CompleteRequest { result: Some(Bytes::from_static(b"new")), ..case.completion(new.lease) };
    assert_eq!(case.complete_with(request).await, Completion::Completed);
    let request = CompleteRequest { result: Some(Bytes::from_static(b"old")), ..case.completion(old.lease) };
    assert_eq!(case.complete_with(request).await, Completion::DoneByAnother);
    let Claim::Completed { result, .. } = case.ask_for(key).await else { panic!("it is completed") };
    assert_eq!(result.as_deref(), Some(&b"new"[..]));
    assert_eq!(case.complete(new.lease).await, Completion::Repeated);
}

/// A completion that finds the key dead by another owner reports it and leaves it dead.
pub async fn a_key_dead_by_another_stays_dead<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let old = case.claim(key).await;
    case.lapse().await;
    let new = case.claim(key).await;
    let _ = case.fail_with(new.lease, "hopeless", Some(Reason::Permanent)).await;
    assert_eq!(case.bury(new.lease).await, Burial::Dead);
    assert_eq!(case.complete(old.lease).await, Completion::DoneByAnother);
    assert!(matches!(case.ask_for(key).await, Claim::Dead { .. }));
}

/// A completion that finds the key pending, failed or terminally failed by another is refused: do not ack.
pub async fn a_key_held_by_another_is_not_completed<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip([KeyState::Pending, KeyState::Failed, KeyState::Terminal]) {
        let old = case.claim(case.key(n)).await;
        case.lapse().await;
        let _ = case.bring(case.key(n), state, None).await;
        let before = case.content(case.key(n)).await;
        assert_eq!(case.complete(old.lease).await, Completion::HeldByAnother, "{state:?}");
        assert_eq!(case.content(case.key(n)).await, before);
    }
}

/// The result of the handler is replayed byte for byte; no result and an empty one are two things.
pub async fn results_are_replayed_byte_for_byte<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let large: Vec<u8> = (0..64 * 1024_u32).map(|n| (n % 251) as u8).collect();
    let results =
        [None, Some(Bytes::new()), Some(Bytes::from_static(b"\0'\"\xff\xfe")), Some(Bytes::from(large))];
    for (n, result) in (1..).zip(results) {
        let claim = case.claim(case.key(n)).await;
        let request = CompleteRequest { result: result.clone(), ..case.completion(claim.lease) };
        assert_eq!(case.complete_with(request).await, Completion::Completed);
        assert_eq!(case.record(case.key(n)).await.result_bytes, result.as_ref().map(Bytes::len));
        let Claim::Completed { result: replayed, .. } = case.ask_for(case.key(n)).await else {
            panic!("it is completed")
        };
        assert!(replayed == result, "result {n} came back changed");
    }
}

/// The run that completed a key is kept beside its result, byte for byte, for claims and for inspections; a key that is completed
/// without one has none.
pub async fn the_run_of_a_completion_is_kept<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let run = TraceContext::new(u128::MAX - 7, 1 << 63);
    let results = [None, Some(&b""[..]), Some(b"\0'\"\xff\xfe"), Some(b"\0ow-kept\x01\x03 looks like a run")];
    let kept = results.into_iter().flat_map(|result| [(result, run), (result, None)]);
    for (n, (result, trace)) in (1..).zip(kept) {
        let result = result.map(Bytes::from_static);
        let claim = case.claim(case.key(n)).await;
        let request = CompleteRequest { result: result.clone(), trace, ..case.completion(claim.lease) };
        assert_eq!(case.complete_with(request.clone()).await, Completion::Completed);
        let other = CompleteRequest { trace: TraceContext::new(1, 1), ..request };
        assert_eq!(case.complete_with(other).await, Completion::Repeated);
        let record = case.record(case.key(n)).await;
        assert_eq!((record.result_bytes, record.trace), (result.as_ref().map(Bytes::len), trace), "{n}");
        match case.ask_for(case.key(n)).await {
            Claim::Completed { result: replayed, trace: kept, .. } => {
                assert_eq!((replayed, kept), (result, trace), "{n}");
            }
            answer => panic!("expected a completed key, got {answer:?}"),
        }
        assert!(case.forget(case.key(n)).await);
        assert_eq!(
            case.complete_with(CompleteRequest { trace, ..case.completion(claim.lease) }).await,
            Completion::Inserted
        );
        assert_eq!(case.record(case.key(n)).await.trace, trace, "{n}");
    }
}

/// The TTL counts from the completion, and a completed key is a duplicate until its last moment.
pub async fn the_ttl_counts_from_the_completion<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.advance(case.timing.lease / 2).await;
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.ttl);
    case.advance(case.timing.ttl - case.timing.tick).await;
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Completed { .. }));
    case.advance(case.timing.tick).await;
    let next = case.claim(case.key(1)).await;
    assert_eq!((next.attempt, next.lost), (1, 0));
    assert!(next.lease.fence > claim.lease.fence);
}

/// The TTL of a completion is the completion's own, not the claim's.
pub async fn a_completion_brings_its_own_ttl<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let request = CompleteRequest { ttl: case.timing.lease, ..case.completion(claim.lease) };
    assert_eq!(case.complete_with(request).await, Completion::Completed);
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.lease);
    case.advance(case.timing.lease).await;
    let _ = case.claim(case.key(1)).await;
}

/// A renewal that comes after the completion never shortens the completed key's TTL.
pub async fn a_renewal_never_touches_a_completed_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    assert_eq!(case.renew(claim.lease).await, Renewal::Lost);
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.ttl);
    assert_eq!(case.record(case.key(1)).await.lease_left, None);
    case.advance(case.timing.lease + case.timing.tick).await;
    assert!(matches!(case.ask_for(case.key(1)).await, Claim::Completed { .. }));
}

/// A TTL of years is kept.
pub async fn a_very_long_ttl_is_kept<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let years = Duration::from_secs(50 * 365 * 24 * 3_600);
    let claim = case.claim(case.key(1)).await;
    let request = CompleteRequest { ttl: years, ..case.completion(claim.lease) };
    assert_eq!(case.complete_with(request).await, Completion::Completed);
    case.assert_left(case.record(case.key(1)).await.expires_in, years);
}
