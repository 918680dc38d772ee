//! Checks of fingerprints: the same key with another payload.

use super::StoreHarness;
use super::case::Case;
use crate::key::Fingerprint;
use crate::store::{Claim, ClaimRequest, KeyState};

/// A known key with another fingerprint is a mismatch in every state, and nothing changes.
pub async fn another_fingerprint_is_a_mismatch_in_every_state<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        let key = case.key(n);
        let _ = case.bring(key, state, Some(Fingerprint::of(b"one"))).await;
        let before = case.content(key).await;
        for generation in [0, 1] {
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

/// A redriven key still knows its payload.
pub async fn a_redriven_key_knows_its_fingerprint<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, Some(Fingerprint::of(b"one"))).await;
    let _ = case.redrive(key, 0).await;
    let other =
        ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), generation: 1, ..case.request(key) };
    assert_eq!(case.ask(other).await, Claim::Mismatch);
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
