//! Checks of a [`TransactionalStore`] that lets effects share a transaction: each can be undone alone, and those that are
//! kept are committed with their completions, or none is.

use super::TransactionalHarness;
use super::case::Case;
use crate::store::{
    Claimed, Commit, CompleteRequest, KeyState, SharedCommit, TraceContext, TransactionalStore,
};

type Conn<H> = <<H as super::StoreHarness>::Store as TransactionalStore>::Conn;

/// Opens a shared transaction.
async fn begin<H: TransactionalHarness>(case: &Case<'_, H>) -> Conn<H> {
    assert!(case.store.shares_transactions(), "this suite is for stores that do");
    case.store.begin_shared().await.expect("a transaction opens")
}

/// Writes `effect`, as a handler would.
async fn write<H: TransactionalHarness>(case: &Case<'_, H>, conn: &mut Conn<H>, effect: &str) {
    case.harness.write_effect(case.store.lend(conn), effect).await;
}

/// Writes `effect` and keeps it.
async fn keep<H: TransactionalHarness>(case: &Case<'_, H>, conn: &mut Conn<H>, effect: &str) {
    write(case, conn, effect).await;
    case.store.keep(conn).await.expect("it is kept");
}

/// Writes `effect` and undoes it.
async fn undo<H: TransactionalHarness>(case: &Case<'_, H>, conn: &mut Conn<H>, effect: &str) {
    write(case, conn, effect).await;
    case.store.undo(conn).await.expect("it is undone");
}

/// A run that differs from that of other claims.
fn run_of(claim: &Claimed) -> Option<TraceContext> {
    TraceContext::new(claim.lease.fence.into(), 7)
}

/// Commits with the completions of `claims`.
async fn commit<H: TransactionalHarness>(
    case: &Case<'_, H>,
    conn: Conn<H>,
    claims: &[&Claimed],
) -> SharedCommit {
    let request = |claim: &&Claimed| CompleteRequest { trace: run_of(claim), ..case.completion(claim.lease) };
    let requests: Vec<_> = claims.iter().map(request).collect();
    case.store.commit_shared(conn, &case.scope, &requests).await.expect("the store answers")
}

async fn effects<H: TransactionalHarness>(harness: &H) -> Vec<String> {
    let mut effects = harness.effects().await;
    effects.sort();
    effects
}

async fn state<H: TransactionalHarness>(case: &Case<'_, H>, key: u8) -> KeyState {
    case.record(case.key(key.into())).await.state
}

/// Effects that share a transaction are seen with their completions when it commits, and not before.
pub async fn effects_that_share_a_transaction_are_committed_together<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    // Not in the order of their keys.
    let claims = [3, 1, 2].map(|n| case.key(n));
    let claims = [case.claim(claims[0]).await, case.claim(claims[1]).await, case.claim(claims[2]).await];
    case.advance(case.timing.lease / 4).await;
    let mut conn = begin(&case).await;
    keep(&case, &mut conn, "a").await;
    keep(&case, &mut conn, "b").await;
    // The last need not be kept in so many words.
    write(&case, &mut conn, "c").await;
    assert_eq!(harness.effects().await, [""; 0]);
    assert_eq!(commit(&case, conn, &[&claims[0], &claims[1], &claims[2]]).await, SharedCommit::Committed);
    assert_eq!(effects(harness).await, ["a", "b", "c"]);
    for claim in &claims {
        let record = case.record(claim.lease.key).await;
        assert_eq!((record.state, record.trace), (KeyState::Completed, run_of(claim)));
        case.assert_left(record.expires_in, case.timing.ttl);
    }
}

/// An effect that is undone takes no other with it, at any place in the transaction, and its failure can be written.
pub async fn an_undone_effect_takes_no_other_with_it<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let (first, second) = (case.claim(case.key(1)).await, case.claim(case.key(2)).await);
    let failed = case.claim(case.key(3)).await;
    let mut conn = begin(&case).await;
    undo(&case, &mut conn, "failed at first").await;
    keep(&case, &mut conn, "a").await;
    undo(&case, &mut conn, "failed in between").await;
    keep(&case, &mut conn, "b").await;
    undo(&case, &mut conn, "failed at last").await;
    assert_eq!(commit(&case, conn, &[&first, &second]).await, SharedCommit::Committed);
    assert_eq!(effects(harness).await, ["a", "b"]);
    assert_eq!(state(&case, 3).await, KeyState::Pending);
    let _ = case.fail(failed.lease, "no luck").await;
    assert_eq!(case.claim(case.key(3)).await.attempt, 2);
}

/// If one of the claims is no longer held, nothing is committed, and the others are held as before.
pub async fn a_lost_claim_among_several_commits_nothing<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let (held, lost) = (case.claim(case.key(1)).await, case.claim(case.key(2)).await);
    assert!(case.forget(case.key(2)).await);
    let mut conn = begin(&case).await;
    keep(&case, &mut conn, "held").await;
    keep(&case, &mut conn, "lost").await;
    assert_eq!(commit(&case, conn, &[&held, &lost]).await, SharedCommit::RolledBack);
    assert_eq!(harness.effects().await, [""; 0]);
    assert_eq!(state(&case, 1).await, KeyState::Pending);
    let mut conn = case.store.begin().await.expect("a transaction opens");
    write(&case, &mut conn, "held").await;
    let alone = case.store.commit(conn, &case.scope, &case.completion(held.lease)).await;
    assert_eq!(alone.expect("the store answers"), Commit::Committed);
    assert_eq!(harness.effects().await, ["held"]);
}

/// A claim that was taken over, or completed before, is no longer held.
pub async fn a_claim_taken_over_or_completed_commits_nothing_shared<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let old = case.claim(case.key(1)).await;
    case.lapse().await;
    let new = case.claim(case.key(1)).await;
    for (claim, expected) in
        [(&old, SharedCommit::RolledBack), (&new, SharedCommit::Committed), (&new, SharedCommit::RolledBack)]
    {
        let mut conn = begin(&case).await;
        keep(&case, &mut conn, "charged").await;
        assert_eq!(commit(&case, conn, &[claim]).await, expected);
    }
    assert_eq!(harness.effects().await, ["charged"]);
}

/// A shared transaction that is dropped leaves neither effects nor completions, and the store is not stuck.
pub async fn a_dropped_shared_transaction_is_rolled_back<H: TransactionalHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let claim = case.claim(case.key(1)).await;
    let mut conn = begin(&case).await;
    keep(&case, &mut conn, "charged").await;
    drop(conn);
    assert_eq!(state(&case, 1).await, KeyState::Pending);
    assert_eq!(harness.effects().await, [""; 0]);
    let mut conn = begin(&case).await;
    keep(&case, &mut conn, "charged").await;
    assert_eq!(commit(&case, conn, &[&claim]).await, SharedCommit::Committed);
    assert_eq!(harness.effects().await, ["charged"]);
}
