//! Checks of fingerprints: the same key with another payload.

use super::StoreHarness;
use super::case::{Case, claimed};
use crate::key::Fingerprint;
use crate::store::{Claim, ClaimRequest, Completion, KeyState};

/// A known key with another fingerprint is a mismatch in every state, and nothing changes. A newer generation is one too, but
/// where it is a redrive.
pub async fn another_fingerprint_is_a_mismatch_in_every_state<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        let key = case.key(n);
        let _ = case.bring(key, state, Some(Fingerprint::of(b"one"))).await;
        let before = case.content(key).await;
        let redriven = matches!(state, KeyState::Dead | KeyState::Terminal);
        for generation in if redriven { 0..1 } else { 0..2 } {
            let other =
                ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), generation, ..case.request(key) };
            assert_eq!(case.ask(other).await, Claim::Mismatch, "{state:?}");
        }
        assert_eq!(case.content(key).await, before, "{state:?}");
    }
}

/// A lapsed lease is not taken over by another payload.
pub async fn another_fingerprint_takes_no_lapsed_lease_over<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Pending, Some(Fingerprint::of(b"one"))).await;
    case.lapse().await;
    let other = ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), ..case.request(key) };
    assert_eq!(case.ask(other).await, Claim::Mismatch);
    assert_eq!(case.record(key).await.lost, 0);
    let same = ClaimRequest { fingerprint: Some(Fingerprint::of(b"one")), ..case.request(key) };
    assert!(matches!(case.ask(same).await, Claim::Claimed(_)));
}

/// The same fingerprint matches in every state, and a claim without one compares nothing.
pub async fn the_same_or_no_fingerprint_is_no_mismatch<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        for (n, fingerprint) in [(n, Some(Fingerprint::of(b"one"))), (n + 100, None)] {
            let key = case.key(n);
            let _ = case.bring(key, state, Some(Fingerprint::of(b"one"))).await;
            let answer = case.ask(ClaimRequest { fingerprint, ..case.request(key) }).await;
            assert_ne!(answer, Claim::Mismatch, "{state:?}");
        }
    }
}

/// A key that was claimed without a fingerprint takes the first one that a later claim brings.
pub async fn the_first_fingerprint_of_a_later_claim_is_kept<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Failed, None).await;
    let first = ClaimRequest { fingerprint: Some(Fingerprint::of(b"one")), ..case.request(key) };
    assert!(matches!(case.ask(first).await, Claim::Claimed(_)));
    let other = ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), ..case.request(key) };
    assert_eq!(case.ask(other).await, Claim::Mismatch);
}

/// A redriven key takes the payload of its next claim, for the letter may have been corrected; from then on it is compared.
pub async fn a_redriven_key_takes_the_fingerprint_of_its_next_claim<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, Some(Fingerprint::of(b"one"))).await;
    let _ = case.redrive(key, 0).await;
    let with = |text: &[u8]| ClaimRequest {
        fingerprint: Some(Fingerprint::of(text)),
        generation: 1,
        ..case.request(key)
    };
    let corrected = case.ask(with(b"two")).await;
    assert!(matches!(corrected, Claim::Claimed(_)), "{corrected:?}");
    assert_eq!(case.ask(with(b"one")).await, Claim::Mismatch);
}

/// A claim of a newer generation over a dead key brings its own payload; from then on that one is compared.
pub async fn a_newer_generation_brings_its_own_fingerprint<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip([KeyState::Dead, KeyState::Terminal]) {
        let key = case.key(n);
        let _ = case.bring(key, state, Some(Fingerprint::of(b"one"))).await;
        case.lapse().await;
        let with = |text: &[u8], generation| ClaimRequest {
            fingerprint: Some(Fingerprint::of(text)),
            generation,
            ..case.request(key)
        };
        assert_eq!(case.ask(with(b"two", 0)).await, Claim::Mismatch, "{state:?}");
        let corrected = claimed(case.ask(with(b"two", 1)).await);
        assert_eq!(case.complete(corrected.lease).await, Completion::Completed, "{state:?}");
        for generation in [0, 1, 2] {
            assert_eq!(case.ask(with(b"one", generation)).await, Claim::Mismatch, "{state:?}");
            let same = case.ask(with(b"two", generation)).await;
            assert!(matches!(same, Claim::Completed { .. }), "{state:?}: {same:?}");
        }
    }
}

/// A redrive without a fingerprint forgets the old one: the next claim brings it.
pub async fn a_newer_generation_without_a_fingerprint_forgets_the_old_one<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, Some(Fingerprint::of(b"one"))).await;
    let claim = claimed(case.ask(ClaimRequest { generation: 1, ..case.request(key) }).await);
    assert!(case.release(claim.lease).await);
    let other = ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), ..case.request(key) };
    let answer = case.ask(other).await;
    assert!(matches!(answer, Claim::Claimed(_)), "{answer:?}");
}

/// An expired record knows no payload.
pub async fn an_expired_record_mismatches_nothing<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Completed, Some(Fingerprint::of(b"one"))).await;
    case.advance(case.timing.ttl).await;
    let other = ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), ..case.request(key) };
    assert!(matches!(case.ask(other).await, Claim::Claimed(_)));
    let former = ClaimRequest { fingerprint: Some(Fingerprint::of(b"one")), ..case.request(key) };
    assert_eq!(case.ask(former).await, Claim::Mismatch);
}
