//! Checks of batches: one answer per item, in order, regardless of its neighbours.

use super::StoreHarness;
use super::case::{Case, all};
use crate::key::{Fingerprint, Key};
use crate::store::{
    Burial, BuryRequest, Claim, ClaimRequest, CompleteRequest, Completion, FailRequest, Failure, KeyState,
    Lease, Reason, Redrive, RedriveRequest, RenewRequest, Renewal, Store, StoreAdmin,
};

/// An empty batch has no answers.
pub async fn an_empty_batch_has_no_answers<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    assert!(case.store.claim(&case.scope, &case.terms, &[]).await.is_empty());
    assert!(case.store.complete(&case.scope, &[]).await.is_empty());
    assert!(case.store.renew(&case.scope, &[]).await.is_empty());
    assert!(case.store.fail(&case.scope, &[]).await.is_empty());
    assert!(case.store.bury(&case.scope, &[]).await.is_empty());
    assert!(case.store.release(&case.scope, &[]).await.is_empty());
    assert!(case.store.redrive(&case.scope, &[]).await.is_empty());
    assert!(case.store.forget(&case.scope, &[]).await.is_empty());
}

/// A batch of claims is answered in order, each key as if it were alone.
pub async fn claims_of_a_batch_are_answered_in_order<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        let _ = case.bring(case.key(n), state, Some(Fingerprint::of(b"one"))).await;
    }
    let _ = case.bring(case.key(7), KeyState::Completed, Some(Fingerprint::of(b"one"))).await;
    let mismatch = ClaimRequest { fingerprint: Some(Fingerprint::of(b"two")), ..case.request(case.key(7)) };
    let mut batch: Vec<ClaimRequest> = (0..=6).map(|n| case.request(case.key(n))).collect();
    batch.insert(3, mismatch);
    let forwards = all(case.store.claim(&case.scope, &case.terms, &batch).await);
    assert_eq!(forwards.len(), 8);
    assert!(
        matches!(&forwards[0], Claim::Claimed(claim) if claim.lease.key == case.key(0) && claim.attempt == 1)
    );
    assert!(
        matches!(&forwards[1], Claim::Claimed(claim) if claim.lease.key == case.key(1) && claim.attempt == 1)
    );
    assert!(matches!(&forwards[2], Claim::InProgress { .. }), "{:?}", forwards[2]);
    assert_eq!(forwards[3], Claim::Mismatch);
    assert!(
        matches!(&forwards[4], Claim::Claimed(claim) if claim.lease.key == case.key(3) && claim.attempt == 2)
    );
    assert!(matches!(&forwards[5], Claim::InProgress { .. }), "{:?}", forwards[5]);
    assert!(matches!(&forwards[6], Claim::Completed { .. }), "{:?}", forwards[6]);
    assert!(matches!(&forwards[7], Claim::Dead { .. }), "{:?}", forwards[7]);

    batch.reverse();
    let backwards = all(case.store.claim(&case.scope, &case.terms, &batch).await);
    for (claim, repeated) in forwards.iter().zip(backwards.iter().rev()) {
        match (claim, repeated) {
            (Claim::Claimed(claim), Claim::Claimed(repeated)) => assert_eq!(claim.lease, repeated.lease),
            (claim, repeated) => {
                assert_eq!(std::mem::discriminant(claim), std::mem::discriminant(repeated));
            }
        }
    }
}

/// One write of a batch that is refused leaves its neighbours' alone.
pub async fn a_refused_write_does_not_fail_its_neighbours<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let batch = [case.key(1), case.key(2), case.key(3)];
    let forged = |lease: Lease| Lease { owner: case.token(), ..lease };
    let claim_all = async || {
        let mut leases = Vec::new();
        for key in batch {
            leases.push(case.claim(key).await.lease);
        }
        leases[1] = forged(leases[1]);
        leases
    };

    let leases = claim_all().await;
    let renewals: Vec<RenewRequest> = leases
        .iter()
        .map(|&lease| RenewRequest { lease, lease_for: case.timing.lease, started: false })
        .collect();
    let answers = all(case.store.renew(&case.scope, &renewals).await);
    assert_eq!(answers, [Renewal::Renewed, Renewal::Lost, Renewal::Renewed]);
    assert_eq!(all(case.store.release(&case.scope, &leases).await), [true, false, true]);
    for key in batch {
        assert!(case.forget(key).await);
    }

    let leases = claim_all().await;
    let terminal = Some(Reason::Permanent);
    let failures: Vec<FailRequest> =
        leases.iter().map(|&lease| FailRequest { lease, error: lease.key.to_string(), terminal }).collect();
    let answers = all(case.store.fail(&case.scope, &failures).await);
    assert!(matches!(
        answers[..],
        [Failure::Recorded { attempts: 1, .. }, Failure::Lost, Failure::Recorded { attempts: 1, .. }]
    ));
    assert_eq!(case.record(batch[2]).await.error, Some(batch[2].to_string()));
    let burials: Vec<BuryRequest> =
        leases.iter().map(|&lease| BuryRequest { lease, ttl: case.timing.ttl }).collect();
    let answers = all(case.store.bury(&case.scope, &burials).await);
    assert_eq!(answers, [Burial::Dead, Burial::Lost, Burial::Dead]);
    let redrives: Vec<RedriveRequest> =
        batch.iter().map(|&key| RedriveRequest { key, generation: 0, ttl: case.timing.ttl }).collect();
    let answers = all(case.store.redrive(&case.scope, &redrives).await);
    let open = Redrive::Open { generation: 1 };
    assert_eq!(answers, [open, Redrive::NotDead, open]);
    let keys: Vec<Key> = vec![batch[0], case.key(99), batch[1], batch[2]];
    assert_eq!(all(case.store.forget(&case.scope, &keys).await), [true, false, true, true]);

    let leases = claim_all().await;
    let completions: Vec<CompleteRequest> = leases.iter().map(|&lease| case.completion(lease)).collect();
    let answers = all(case.store.complete(&case.scope, &completions).await);
    assert_eq!(answers, [Completion::Completed, Completion::HeldByAnother, Completion::Completed]);
}

/// A batch of 1,000 is answered wholly and in order, from the claim to the completion.
pub async fn a_batch_of_a_thousand_is_answered_in_order<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let batch: Vec<ClaimRequest> = (0..1_000).map(|n| case.request(case.key(n))).collect();
    let claims = all(case.store.claim(&case.scope, &case.terms, &batch).await);
    assert_eq!(claims.len(), batch.len());
    let leases: Vec<Lease> = claims.into_iter().map(|claim| super::case::claimed(claim).lease).collect();
    for (request, lease) in batch.iter().zip(&leases) {
        assert_eq!((lease.key, lease.owner), (request.key, request.owner));
    }
    let renewals: Vec<RenewRequest> = leases
        .iter()
        .map(|&lease| RenewRequest { lease, lease_for: case.timing.lease, started: true })
        .collect();
    let renewed = all(case.store.renew(&case.scope, &renewals).await);
    assert!(renewed.len() == 1_000 && renewed.iter().all(|answer| *answer == Renewal::Renewed));
    let completions: Vec<CompleteRequest> = leases
        .iter()
        .map(|&lease| CompleteRequest {
            result: Some(bytes::Bytes::copy_from_slice(lease.key.as_bytes())),
            ..case.completion(lease)
        })
        .collect();
    let completed = all(case.store.complete(&case.scope, &completions).await);
    assert!(completed.len() == 1_000 && completed.iter().all(|answer| *answer == Completion::Completed));
    let again: Vec<ClaimRequest> = (0..1_000).map(|n| case.request(case.key(n))).collect();
    for (request, claim) in again.iter().zip(all(case.store.claim(&case.scope, &case.terms, &again).await)) {
        let Claim::Completed { result, .. } = claim else { panic!("it is completed") };
        assert_eq!(result.as_deref(), Some(&request.key.as_bytes()[..]));
    }
}
