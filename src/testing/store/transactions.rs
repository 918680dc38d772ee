//! Checks of [`TransactionalStore`]: the effect and its completion are committed together, or neither.

use std::mem::discriminant;

use bytes::Bytes;

use super::TransactionalHarness;
use super::case::{Case, claimed, one};
use crate::store::{
    Claim, Claimed, Commit, CompleteRequest, Completion, KeyState, Reason, Store, TraceContext,
    TransactionalStore,
};

/// Opens a transaction and writes `effect` through it.
async fn run<H: TransactionalHarness>(
    case: &Case<'_, H>,
    effect: &str,
) -> <H::Store as TransactionalStore>::Conn {
    let mut conn = case.store.begin().await.expect("a transaction opens");
    case.harness.write_effect(case.store.lend(&mut conn), effect).await;
    conn
}

const RUN: Option<TraceContext> = TraceContext::new(7, 8);

/// Commits the run of `claim`.
async fn commit<H: TransactionalHarness>(
    case: &Case<'_, H>,
    conn: <H::Store as TransactionalStore>::Conn,
    claim: &Claimed,
) -> Commit {
    let result = Some(Bytes::from_static(b"done"));
    let request = CompleteRequest { result, trace: RUN, ..case.completion(claim.lease) };
    case.store.commit(conn, &case.scope, &request).await.expect("the store answers")
}

/// The effect and its completion are committed together, with the result and the run, and the TTL counts from the commit.
pub async fn effect_and_completion_are_committed_together<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let other = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.advance(case.timing.lease / 2).await;
    let conn = run(&case, "charged").await;
    assert_eq!(commit(&case, conn, &claim).await, Commit::Committed);
    assert_eq!(harness.effects().await, ["charged"]);
    let Claim::Completed { result, trace, .. } = other.ask_for(case.key(1)).await else {
        panic!("it is completed")
    };
    assert_eq!((result.as_deref(), trace), (Some(&b"done"[..]), RUN));
    case.assert_left(case.record(case.key(1)).await.expires_in, case.timing.ttl);
    assert_eq!(case.complete(claim.lease).await, Completion::Repeated);
}

/// A transaction that is dropped leaves neither effect nor completion, and the claim as it was.
pub async fn a_dropped_transaction_is_rolled_back<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    drop(run(&case, "charged").await);
    assert_eq!(case.record(case.key(1)).await.state, KeyState::Pending);
    assert_eq!(harness.effects().await, [""; 0]);
    let conn = run(&case, "charged").await;
    assert_eq!(commit(&case, conn, &claim).await, Commit::Committed, "the store is not stuck");
    assert_eq!(harness.effects().await, ["charged"]);
}

/// The effect of a handler that failed is rolled back, and its failure can be written.
pub async fn the_effect_of_a_failed_handler_is_rolled_back<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let conn = run(&case, "charged").await;
    case.store.rollback(conn).await;
    assert_eq!(harness.effects().await, [""; 0]);
    let _ = case.fail(claim.lease, "no luck").await;
    assert_eq!(case.claim(case.key(1)).await.attempt, 2);
}

/// A commit of a claim that was taken over is fenced: its effect is rolled back, the new owner's is not.
pub async fn a_commit_after_a_take_over_is_fenced<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let old = case.claim(case.key(1)).await;
    case.lapse().await;
    let new = case.claim(case.key(1)).await;
    let conn = run(&case, "old").await;
    assert_eq!(commit(&case, conn, &old).await, Commit::Fenced);
    assert_eq!(harness.effects().await, [""; 0]);
    assert_eq!(case.record(case.key(1)).await.state, KeyState::Pending);
    let conn = run(&case, "new").await;
    assert_eq!(commit(&case, conn, &new).await, Commit::Committed);
    assert_eq!(harness.effects().await, ["new"]);
}

/// A claim whose lease has run out commits, as long as no newer fence was given out.
pub async fn a_lapsed_claim_nobody_took_over_commits<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    case.lapse().await;
    let conn = run(&case, "charged").await;
    assert_eq!(commit(&case, conn, &claim).await, Commit::Committed);
    assert_eq!(harness.effects().await, ["charged"]);
}

/// A run that is repeated after its commit, because the reply was lost, is fenced: its effect does not happen twice.
pub async fn a_repeated_run_after_its_commit_is_fenced<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    for expected in [Commit::Committed, Commit::Fenced] {
        let conn = run(&case, "charged").await;
        assert_eq!(commit(&case, conn, &claim).await, expected);
    }
    assert_eq!(harness.effects().await, ["charged"]);
}

/// A commit of a claim that is no longer held is fenced in every state but pending, and if the record no longer exists.
pub async fn a_commit_needs_its_claim_to_be_pending<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for (n, state) in (1..).zip(KeyState::ALL) {
        if state == KeyState::Pending {
            continue;
        }
        let lease = case.bring(case.key(n), state, None).await;
        let before = case.content(case.key(n)).await;
        let conn = run(&case, "charged").await;
        let answer = case.store.commit(conn, &case.scope, &case.completion(lease)).await;
        assert_eq!(answer.expect("the store answers"), Commit::Fenced, "{state:?}");
        assert_eq!(case.content(case.key(n)).await, before);
    }
    let lost = case.claim(case.key(50)).await;
    assert!(case.forget(case.key(50)).await);
    let conn = run(&case, "charged").await;
    assert_eq!(commit(&case, conn, &lost).await, Commit::Fenced, "the record no longer exists");
    assert_eq!(case.inspect(case.key(50)).await, None);
    assert_eq!(harness.effects().await, [""; 0]);
}

/// A commit compares owner token and fence.
pub async fn a_commit_needs_owner_token_and_fence<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let mut forged = [claim; 3];
    forged[0].lease.owner = case.token();
    forged[1].lease.fence += 1;
    forged[2].lease.fence -= 1;
    for forged in forged {
        let conn = run(&case, "charged").await;
        assert_eq!(commit(&case, conn, &forged).await, Commit::Fenced);
    }
    assert_eq!(harness.effects().await, [""; 0]);
    assert_eq!(case.record(case.key(1)).await.state, KeyState::Pending);
}

/// A dead letter and a transaction do not mix: a terminal failure after a rollback is written like any other.
pub async fn a_terminal_failure_follows_a_rollback<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let conn = run(&case, "charged").await;
    case.store.rollback(conn).await;
    let _ = case.fail_with(claim.lease, "hopeless", Some(Reason::Permanent)).await;
    assert_eq!(case.record(case.key(1)).await.state, KeyState::Terminal);
    assert_eq!(harness.effects().await, [""; 0]);
}

/// A claim for a commit answers in every state as any other claim does, and a repeated one recognises itself.
pub async fn a_claim_for_a_commit_is_answered_as_any_other<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let ask = async |request| one(case.store.claim_for_commit(&case.scope, &case.terms, &[request]).await);
    let request = case.request(case.key(1));
    let first = claimed(ask(request).await);
    assert_eq!((first.attempt, first.lost, first.lease.owner), (1, 0, request.owner));
    assert_eq!(claimed(ask(request).await).lease, first.lease);
    assert!(matches!(ask(case.request(case.key(1))).await, Claim::InProgress { .. }));
    let conn = run(&case, "charged").await;
    assert_eq!(commit(&case, conn, &first).await, Commit::Committed);
    let Claim::Completed { result, trace, .. } = ask(case.request(case.key(1))).await else {
        panic!("it is completed")
    };
    assert_eq!((result.as_deref(), trace), (Some(&b"done"[..]), RUN));
    for (n, state) in (1..).zip(KeyState::ALL) {
        let [one, other] = [case.key(100 * n), case.key(100 * n + 1)];
        let (_, lease) = (case.bring(one, state, None).await, case.bring(other, state, None).await);
        let expected = case.ask_for(one).await;
        let answer = ask(case.request(other)).await;
        assert_eq!(discriminant(&answer), discriminant(&expected), "{state:?}: {answer:?}, not {expected:?}");
        if let Claim::Claimed(claimed) = answer {
            assert!(claimed.lease.fence > lease.fence, "{state:?}");
        }
    }
}
