//! Keys completed by the transactions of their effects, on a real server: owners of different partitions meet the same keys at
//! the same time, in batches, are rolled back and die, and every key has one effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onceward::Key;
use onceward::store::{
    Entropy, KeyMark, LogPartition, MarkRequest, MarkedCommit, MarkedKey, Ownership, PositionStore,
    TransactionalStore,
};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;

use crate::claimed::scope;

const PARTITIONS: u32 = 4;
const RECORDS: u64 = 300;
const KEYS: u64 = 200;
const TTL: Duration = Duration::from_secs(3_600);

/// The key of a record: the same ones on all partitions, some of them several times on one.
fn key_of(partition: u32, offset: u64) -> u64 {
    (offset * 7 + u64::from(partition) * 13) % KEYS
}

/// Takes the records of a partition in batches until all are processed. Some transactions are rolled back, some die with their
/// connections, some have their commit's answer lost.
async fn work(store: &PgStore, partition: u32) {
    let named = LogPartition { group: "billing".into(), incarnation: "log".into(), partition };
    let mut entropy = Entropy::system();
    loop {
        let owner = store.own(&scope(), &named).await.unwrap();
        let left: Vec<_> = (0..RECORDS).filter(|offset| !owner.is_done(*offset)).collect();
        if left.is_empty() {
            return;
        }
        for batch in left.chunks(fastrand::usize(1..25)) {
            match fastrand::u8(..8) {
                0 => break,
                fault => attempt(store, &owner, batch, &mut entropy, fault).await,
            }
        }
    }
}

async fn attempt(store: &PgStore, owner: &Ownership, batch: &[u64], entropy: &mut Entropy, fault: u8) {
    let Ownership { partition, epoch, .. } = owner.clone();
    let mut keys: Vec<_> = batch.iter().map(|offset| key_of(partition.partition, *offset)).collect();
    fastrand::shuffle(&mut keys);
    keys.sort_unstable_by_key(|key| key % 3);
    let mut distinct = keys.clone();
    distinct.sort_unstable();
    distinct.dedup();
    fastrand::shuffle(&mut distinct);
    let marks: Vec<_> = distinct
        .iter()
        .map(|key| KeyMark {
            key: Key::of(&scope(), key.to_string()).unwrap(),
            owner: entropy.token(),
            fingerprint: None,
        })
        .collect();
    let open = store.begin().await.unwrap();
    // A rival that takes its time is waited for with the next try.
    let Ok((mut open, found)) = store.mark_keys(open, &scope(), TTL, &marks).await else { return };
    for (key, found) in distinct.iter().zip(found) {
        match found {
            MarkedKey::Fresh => {
                let mut tx = store.lend(&mut open);
                let effect = sqlx::query("INSERT INTO effects VALUES ($1)").bind(*key as i64);
                effect.execute(&mut *tx).await.unwrap();
            }
            MarkedKey::Completed => {}
            other => panic!("{other:?}"),
        }
    }
    match fault {
        1 => return store.rollback(open).await,
        2 => return drop(open),
        _ => {}
    }
    let mark = MarkRequest { partition, epoch, offsets: batch.to_vec(), floor: 0 };
    let committed = store.commit_at(open, &scope(), &mark, None).await.unwrap();
    assert!(matches!(committed, MarkedCommit::Committed | MarkedCommit::Processed), "{committed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_different_partitions_that_meet_the_same_keys_leave_one_effect_for_each() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    server.sql("CREATE TABLE effects (key bigint NOT NULL)");
    let mut config = PgConfig::new(server.url("postgres"));
    config.options.lock_timeout = Duration::from_secs(5);
    let store = Arc::new(PgStore::open(config).await.unwrap());
    let workers = (0..PARTITIONS).map(|partition| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { work(&store, partition).await })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let mut effects = BTreeMap::<u64, u32>::new();
    for key in server.sql("SELECT key FROM effects").lines() {
        *effects.entry(key.parse().unwrap()).or_default() += 1;
    }
    let expected: BTreeMap<_, _> = (0..PARTITIONS)
        .flat_map(|partition| (0..RECORDS).map(move |offset| (key_of(partition, offset), 1)))
        .collect();
    assert_eq!(effects, expected);
}
