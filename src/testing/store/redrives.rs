//! Checks of redrives: by the store's own call, and by a claim that carries a newer generation.

use super::StoreHarness;
use super::case::{Case, claimed};
use crate::key::Key;
use crate::store::{Claim, ClaimRequest, Completion, KeyState, MAX_GENERATION, Reason, Redrive};

/// Claims `key` in the generation it was opened in and lets it die.
async fn die_again<H: StoreHarness>(case: &Case<'_, H>, key: Key) {
    let claim = case.claim(key).await;
    let _ = case.fail_with(claim.lease, "hopeless", Some(Reason::Permanent)).await;
    let _ = case.bury(claim.lease).await;
}

/// A redrive opens a dead key in the next generation: attempts, losses and failure forgotten, the fence not.
pub async fn a_redrive_opens_a_dead_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.claim(key).await;
    case.lapse().await;
    let lease = case.bring(key, KeyState::Dead, None).await;
    assert_eq!(case.redrive(key, 0).await, Redrive::Open { generation: 1 });
    let record = case.record(key).await;
    assert_eq!((record.state, record.generation, record.attempts), (KeyState::Absent, 1, 0));
    assert_eq!((record.reason, record.error), (None, None));
    let claim = claimed(case.ask(ClaimRequest { generation: 1, ..case.request(key) }).await);
    assert_eq!((claim.attempt, claim.lost, claim.generation), (1, 0, 1));
    assert!(claim.lease.fence > lease.fence);
}

/// The claim that died can no longer write to the key that was reopened.
pub async fn the_dead_claim_cannot_write_after_a_redrive<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let lease = case.bring(case.key(1), KeyState::Dead, None).await;
    assert_eq!(case.redrive(case.key(1), 0).await, Redrive::Open { generation: 1 });
    let before = case.content(case.key(1)).await;
    assert_eq!(case.bury(lease).await, crate::store::Burial::Lost);
    assert!(!case.release(lease).await);
    assert_eq!(case.content(case.key(1)).await, before);
}

/// A repeated redrive answers the same while the opened key is unfinished: free, claimed or failed.
pub async fn a_repeated_redrive_finds_the_key_open<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, None).await;
    assert_eq!(case.redrive(key, 0).await, Redrive::Open { generation: 1 });
    assert_eq!(case.redrive(key, 0).await, Redrive::Open { generation: 1 });
    let claim = case.claim(key).await;
    assert_eq!(case.redrive(key, 0).await, Redrive::Open { generation: 1 });
    assert_eq!(case.record(key).await.fence, claim.lease.fence, "the claim goes on");
    let _ = case.fail(claim.lease, "no luck").await;
    assert_eq!(case.redrive(key, 0).await, Redrive::Open { generation: 1 });
    assert_eq!(case.record(key).await.attempts, 1, "a repeat forgets nothing");
}

/// A letter whose key has completed in a later generation is resolved.
pub async fn a_letter_is_resolved_once_its_redrive_has_completed<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, None).await;
    let _ = case.redrive(key, 0).await;
    assert_eq!(case.complete(case.claim(key).await.lease).await, Completion::Completed);
    assert_eq!(case.redrive(key, 0).await, Redrive::Resolved);
    assert!(matches!(case.ask_for(key).await, Claim::Completed { .. }));
}

/// A letter whose key has died again is resolved: the later letter replaces it. That one can be redriven.
pub async fn a_letter_is_resolved_once_its_redrive_has_died<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, None).await;
    let _ = case.redrive(key, 0).await;
    die_again(&case, key).await;
    assert_eq!(case.redrive(key, 0).await, Redrive::Resolved);
    assert_eq!(case.record(key).await.state, KeyState::Dead);
    assert_eq!(case.redrive(key, 1).await, Redrive::Open { generation: 2 });
    assert_eq!(case.redrive(key, 0).await, Redrive::Resolved, "generation 1 has died, whatever 2 does");
}

/// A key that is not dead is not redriven: an unknown key, an unfinished one, a letter from a generation yet to come.
pub async fn what_is_not_dead_is_not_redriven<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    assert_eq!(case.redrive(case.key(1), 0).await, Redrive::NotDead);
    assert_eq!(case.inspect(case.key(1)).await, None);
    for (n, state) in
        (2..).zip([KeyState::Absent, KeyState::Pending, KeyState::Failed, KeyState::Terminal, KeyState::Dead])
    {
        let _ = case.bring(case.key(n), state, None).await;
        let before = case.content(case.key(n)).await;
        assert_eq!(case.redrive(case.key(n), 1).await, Redrive::NotDead, "{state:?}");
        if state != KeyState::Dead {
            assert_eq!(case.redrive(case.key(n), 0).await, Redrive::NotDead, "{state:?}");
        }
        assert_eq!(case.content(case.key(n)).await, before);
    }
}

/// An expired dead record is not redriven.
pub async fn an_expired_dead_record_is_not_redriven<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Dead, None).await;
    case.advance(case.timing.ttl).await;
    assert_eq!(case.redrive(case.key(1), 0).await, Redrive::NotDead);
}

/// An opened key that is not claimed expires after the redrive's TTL.
pub async fn an_opened_key_nobody_claims_expires<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Dead, None).await;
    case.advance(case.timing.ttl / 2).await;
    let _ = case.redrive(case.key(1), 0).await;
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.ttl);
    case.advance(case.timing.ttl).await;
    assert_eq!(case.inspect(case.key(1)).await, None);
}

/// A claim of the next generation is a redrive, however the message was moved: attempts from 1 in that generation.
pub async fn a_claim_of_a_newer_generation_opens_a_dead_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let dead = case.bring(key, KeyState::Dead, None).await;
    let claim = claimed(case.ask(ClaimRequest { generation: 1, ..case.request(key) }).await);
    assert_eq!((claim.attempt, claim.lost, claim.generation), (1, 0, 1));
    assert!(claim.lease.fence > dead.fence);
    let record = case.record(key).await;
    assert_eq!((record.state, record.generation, record.attempts), (KeyState::Pending, 1, 0));
}

/// A terminal failure whose burial was never written is as good as dead to a newer generation, once its lease is over: the
/// letter was published. Until then its owner is writing.
pub async fn a_claim_of_a_newer_generation_opens_a_terminal_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let terminal = case.bring(key, KeyState::Terminal, None).await;
    let newer = |generation| ClaimRequest { generation, ..case.request(key) };
    let early = case.ask(newer(1)).await;
    assert!(matches!(early, Claim::InProgress { .. }), "{early:?}");
    case.lapse().await;
    let same = case.exhaust(key).await;
    assert!(same.lease.fence > terminal.fence, "the generation that failed is dead-lettered again");
    case.lapse().await;
    let claim = claimed(case.ask(newer(1)).await);
    assert_eq!((claim.attempt, claim.lost, claim.generation), (1, 0, 1));
    assert!(claim.lease.fence > same.lease.fence);
    let record = case.record(key).await;
    assert_eq!((record.state, record.generation, record.attempts), (KeyState::Pending, 1, 0));
    assert_eq!((record.reason, record.error), (None, None));
    let repeated = case.bury(terminal).await;
    assert_eq!(repeated, crate::store::Burial::Lost, "the claim that failed has no say any more");
    assert_eq!(case.complete(claim.lease).await, Completion::Completed);
}

/// The same by the store's own call: a terminal failure without a live lease counts as dead.
pub async fn a_redrive_opens_a_terminal_key_whose_lease_is_over<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Terminal, None).await;
    assert_eq!(case.redrive(key, 0).await, Redrive::NotDead, "its lease is live");
    case.lapse().await;
    assert_eq!(case.redrive(key, 1).await, Redrive::NotDead, "a letter of a generation yet to come");
    assert_eq!(case.redrive(key, 0).await, Redrive::Open { generation: 1 });
    let record = case.record(key).await;
    assert_eq!((record.state, record.generation, record.attempts), (KeyState::Absent, 1, 0));
    assert_eq!(claimed(case.ask(ClaimRequest { generation: 1, ..case.request(key) }).await).attempt, 1);
}

/// A dead key opens for the next generation alone: a message of a later generation, however late, is not one of its
/// letters and finds it dead, and leaves it as it is for the letter that is.
pub async fn a_claim_beyond_the_next_generation_finds_the_key_dead<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, None).await;
    for died in 0..3 {
        let before = case.content(key).await;
        for generation in BEYOND.into_iter().chain([died + 2, died]) {
            let answer = case.ask(ClaimRequest { generation, ..case.request(key) }).await;
            let is_dead = matches!(answer, Claim::Dead { generation, .. } if generation == died);
            assert!(is_dead, "{generation} finds {answer:?}");
        }
        assert_eq!(case.content(key).await, before);
        let claim = claimed(case.ask(ClaimRequest { generation: died + 1, ..case.request(key) }).await);
        assert_eq!((claim.attempt, claim.generation), (1, died + 1));
        let _ = case.fail_with(claim.lease, "hopeless", Some(Reason::Permanent)).await;
        assert_eq!(case.bury(claim.lease).await, crate::store::Burial::Dead);
    }
}

/// Generations that no key has.
const BEYOND: [u32; 6] =
    [MAX_GENERATION, MAX_GENERATION + 1, i32::MAX as u32, i32::MAX as u32 + 1, u32::MAX - 1, u32::MAX];

/// A terminal failure whose lease is over is claimed for dead-lettering by a generation beyond the next, in its own.
pub async fn a_claim_beyond_the_next_generation_opens_no_terminal_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, generation) in (1..).zip(BEYOND) {
        let _ = case.bring(case.key(n), KeyState::Terminal, None).await;
        case.lapse().await;
        match case.ask(ClaimRequest { generation, ..case.request(case.key(n)) }).await {
            Claim::Exhausted(exhausted) => assert_eq!(exhausted.generation, 0, "{generation}"),
            other => panic!("{generation} finds {other:?}"),
        }
    }
}

/// A generation beyond the next does not raise that of an unfinished key: its message runs as a copy of what is known.
pub async fn a_claim_beyond_the_next_generation_raises_no_generation<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, generation) in (1..).zip(BEYOND.into_iter().chain([2])) {
        let (free, failed) = (case.key(2 * n), case.key(2 * n + 1));
        let _ = case.bring(free, KeyState::Absent, None).await;
        let _ = case.bring(failed, KeyState::Failed, None).await;
        for key in [free, failed] {
            let claim = claimed(case.ask(ClaimRequest { generation, ..case.request(key) }).await);
            assert_eq!(claim.generation, 0, "{generation}");
            assert_eq!(case.record(key).await.generation, 0, "{generation}");
        }
    }
}

/// Where nothing is known the store may have been lost: a letter keeps its generation, up to the largest that there is. The
/// largest that died cannot be redriven.
pub async fn an_unknown_key_takes_any_possible_generation<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, generation) in (1..).zip([1, 7, MAX_GENERATION - 1, MAX_GENERATION]) {
        let key = case.key(n);
        let claim = claimed(case.ask(ClaimRequest { generation, ..case.request(key) }).await);
        assert_eq!(claim.generation, generation);
        let _ = case.fail_with(claim.lease, "hopeless", Some(Reason::Permanent)).await;
        let _ = case.bury(claim.lease).await;
        assert_eq!(case.record(key).await.generation, generation);
    }
    let (next_to_last, last) = (case.key(3), case.key(4));
    assert_eq!(
        case.redrive(next_to_last, MAX_GENERATION - 1).await,
        Redrive::Open { generation: MAX_GENERATION }
    );
    assert_eq!(case.redrive(last, MAX_GENERATION).await, Redrive::NotDead);
    assert_eq!(case.redrive(last, u32::MAX).await, Redrive::NotDead);
    let answer = case.ask(ClaimRequest { generation: MAX_GENERATION + 1, ..case.request(last) }).await;
    assert!(matches!(answer, Claim::Dead { generation: MAX_GENERATION, .. }), "{answer:?}");
    for (n, generation) in (5..).zip([MAX_GENERATION + 1, i32::MAX as u32 + 1, u32::MAX]) {
        let key = case.key(n);
        let claim = claimed(case.ask(ClaimRequest { generation, ..case.request(key) }).await);
        assert_eq!(
            (claim.generation, case.record(key).await.generation),
            (0, 0),
            "{generation} is impossible"
        );
        assert_eq!(case.complete(claim.lease).await, Completion::Completed);
    }
}

/// A late copy of the same or an older generation finds the key dead.
pub async fn a_copy_of_an_older_generation_finds_the_key_dead<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let _ = case.bring(key, KeyState::Dead, None).await;
    let _ = case.redrive(key, 0).await;
    die_again(&case, key).await;
    for generation in [0, 1] {
        let answer = case.ask(ClaimRequest { generation, ..case.request(key) }).await;
        assert!(matches!(answer, Claim::Dead { generation: 1, .. }), "{answer:?}");
    }
}

/// A completed key stays completed, however new the generation of a claim.
pub async fn a_newer_generation_does_not_open_a_completed_key<H: StoreHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let _ = case.bring(case.key(1), KeyState::Completed, None).await;
    let answer = case.ask(ClaimRequest { generation: 9, ..case.request(case.key(1)) }).await;
    assert!(matches!(answer, Claim::Completed { .. }), "{answer:?}");
}
