//! Checks of [`PositionStore::mark_keys`]: a key is completed by the transaction of its effect, without a claim before it.

use std::time::Duration;

use super::TransactionalHarness;
use super::case::Case;
use crate::key::{Fingerprint, Key};
use crate::store::{
    Completion, KeyMark, KeyState, LogPartition, MarkRequest, MarkedCommit, MarkedKey, Ownership,
    PositionStore, TransactionalStore,
};

type Conn<H> = <<H as super::StoreHarness>::Store as TransactionalStore>::Conn;

async fn owned<H: TransactionalHarness<Store: PositionStore>>(case: &Case<'_, H>) -> Ownership {
    let partition = LogPartition { group: "conformance".into(), incarnation: "log".into(), partition: 0 };
    case.store.own(&case.scope, &partition).await.expect("the store answers")
}

/// Opens a transaction, marks keys in it, and writes the effects of those that are fresh.
async fn run<H: TransactionalHarness<Store: PositionStore>>(
    case: &Case<'_, H>,
    keys: &[(Key, Option<Fingerprint>)],
) -> (Conn<H>, Vec<MarkedKey>) {
    let mark =
        |(key, fingerprint): &(Key, _)| KeyMark { key: *key, owner: case.token(), fingerprint: *fingerprint };
    let marks: Vec<_> = keys.iter().map(mark).collect();
    let open = case.store.begin().await.expect("a transaction opens");
    let marking = case.store.mark_keys(open, &case.scope, case.timing.ttl, &marks);
    let (mut open, found) = marking.await.expect("keys are marked");
    for ((key, _), found) in keys.iter().zip(&found) {
        if *found == MarkedKey::Fresh {
            case.harness.write_effect(case.store.lend(&mut open), &key.to_string()).await;
        }
    }
    (open, found)
}

async fn commit<H: TransactionalHarness<Store: PositionStore>>(
    case: &Case<'_, H>,
    owner: &Ownership,
    open: Conn<H>,
    offset: u64,
) {
    let Ownership { partition, epoch, .. } = owner.clone();
    let mark = MarkRequest { partition, epoch, offsets: vec![offset], floor: 0 };
    let committed = case.store.commit_at(open, &case.scope, &mark, None).await.expect("the store answers");
    assert_eq!(committed, MarkedCommit::Committed);
}

/// A fresh key is completed by the commit of the transaction, for the TTL, and others know it then; a batch is answered in its
/// order.
pub async fn marked_keys_are_completed_with_their_effects<H: TransactionalHarness<Store: PositionStore>>(
    harness: &H,
) {
    let (case, other) = (Case::new(harness).await, Case::new(harness).await);
    let owner = owned(&case).await;
    let keys: Vec<_> = (0..40).map(|n| (case.key(n), None)).collect();
    let (open, found) = run(&case, &keys[..20]).await;
    assert_eq!(found, [MarkedKey::Fresh; 20]);
    assert_eq!(other.inspect(case.key(1)).await, None, "another store sees it before the commit");
    commit(&case, &owner, open, 0).await;
    let record = other.record(case.key(1)).await;
    assert_eq!((record.state, record.attempts, record.lost), (KeyState::Completed, 0, 0));
    case.assert_left(record.expires_in, case.timing.ttl);
    let mut mixed = keys.clone();
    mixed.reverse();
    let (open, found) = run(&other, &mixed).await;
    assert_eq!((&found[..20], &found[20..]), (&[MarkedKey::Fresh; 20][..], &[MarkedKey::Completed; 20][..]));
    commit(&other, &owner, open, 1).await;
    let mut effects = harness.effects().await;
    effects.sort();
    let mut expected: Vec<_> = keys.iter().map(|(key, _)| key.to_string()).collect();
    expected.sort();
    assert_eq!(effects, expected);
}

/// A transaction that is rolled back, or dropped, leaves the key unknown.
pub async fn marks_go_with_their_transaction<H: TransactionalHarness<Store: PositionStore>>(harness: &H) {
    let case = Case::new(harness).await;
    let key = case.key(1);
    let (open, _) = run(&case, &[(key, None)]).await;
    case.store.rollback(open).await;
    assert_eq!(case.inspect(key).await, None);
    let (open, found) = run(&case, &[(key, None)]).await;
    assert_eq!(found, [MarkedKey::Fresh]);
    drop(open);
    let (open, found) = run(&case, &[(key, None)]).await;
    assert_eq!(found, [MarkedKey::Fresh]);
    case.store.rollback(open).await;
    assert_eq!(harness.effects().await, [""; 0]);
}

/// A mark gets the reason for which a claim would be refused, and leaves the key as it is.
pub async fn a_mark_is_told_what_is_known_of_a_key<H: TransactionalHarness<Store: PositionStore>>(
    harness: &H,
) {
    let case = Case::new(harness).await;
    let (own, foreign) = (Some(Fingerprint::of(b"own")), Some(Fingerprint::of(b"foreign")));
    for (n, state) in (1..).zip([KeyState::Completed, KeyState::Dead, KeyState::Pending, KeyState::Terminal])
    {
        let key = case.key(n);
        let _ = case.bring(key, state, own).await;
        let before = case.content(key).await;
        let (open, found) = run(&case, &[(key, own)]).await;
        case.store.rollback(open).await;
        match (state, found[0]) {
            (KeyState::Completed, MarkedKey::Completed) | (KeyState::Dead, MarkedKey::Dead) => {}
            (KeyState::Pending | KeyState::Terminal, MarkedKey::InProgress { retry_in }) => {
                case.assert_left(retry_in, case.timing.lease);
            }
            (state, found) => panic!("{state:?}: {found:?}"),
        }
        let (open, found) = run(&case, &[(key, foreign)]).await;
        case.store.rollback(open).await;
        assert_eq!(found, [MarkedKey::Mismatch], "{state:?}");
        assert_eq!(case.content(key).await, before);
    }
    assert_eq!(harness.effects().await, [""; 0]);
}

/// A key that was released, whose run failed, whose lease is over, or that is past its TTL is fresh; its former owner
/// can no longer complete it.
pub async fn what_a_claim_could_take_over_is_fresh<H: TransactionalHarness<Store: PositionStore>>(
    harness: &H,
) {
    let case = Case::new(harness).await;
    let owner = owned(&case).await;
    let mut leases = Vec::new();
    for (n, state) in (1..).zip([KeyState::Absent, KeyState::Failed, KeyState::Pending, KeyState::Terminal]) {
        leases.push(case.bring(case.key(n), state, None).await);
    }
    case.lapse().await;
    let keys: Vec<_> = leases.iter().map(|lease| (lease.key, None)).collect();
    let (open, found) = run(&case, &keys).await;
    assert_eq!(found, [MarkedKey::Fresh; 4]);
    commit(&case, &owner, open, 0).await;
    for lease in leases {
        assert!(case.record(lease.key).await.fence > lease.fence, "the fence grows");
        assert_eq!(case.complete(lease).await, Completion::DoneByAnother);
    }
    case.advance(case.timing.ttl + case.timing.tick).await;
    let (open, found) = run(&case, &keys[..1]).await;
    assert_eq!(found, [MarkedKey::Fresh], "it is past its TTL");
    case.store.rollback(open).await;
}

/// Of two transactions that mark one key the second waits for the first, and then knows the key, or has it.
pub async fn of_two_transactions_with_one_key_one_waits<H: TransactionalHarness<Store: PositionStore>>(
    harness: &H,
) {
    let (case, other) = (Case::new(harness).await, Case::new(harness).await);
    let owner = owned(&case).await;
    for (n, commits) in [(1, true), (2, false)] {
        let key = [(case.key(n), None)];
        let (first, found) = run(&case, &key).await;
        assert_eq!(found, [MarkedKey::Fresh]);
        let mut second = Box::pin(run(&other, &key));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut second).await;
        assert!(early.is_err(), "the second one was answered before the first had ended");
        match commits {
            true => commit(&case, &owner, first, u64::from(n)).await,
            false => case.store.rollback(first).await,
        }
        let (open, found) = second.await;
        assert_eq!(found, [if commits { MarkedKey::Completed } else { MarkedKey::Fresh }]);
        other.store.rollback(open).await;
    }
    assert_eq!(harness.effects().await, [case.key(1).to_string()]);
}
