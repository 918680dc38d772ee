//! Positions in the effects' own transactions, on a real server: owners come and go, are paused and wake up, and every
//! record has one effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onceward::adapter::StoreAdmin;
use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, KeyState, LogPartition, MarkRequest,
    MarkedCommit, Ownership, PositionStore, TransactionalStore,
};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgConn, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::AssertSqlSafe;

use crate::claimed::scope;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A schema of its own on the shared server, with a table of effects that has no constraint.
struct Place {
    schema: String,
    store: PgStore,
}

impl Place {
    async fn new() -> Self {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let schema = format!("offsets_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let mut owner = PgConfig::new(server.url("postgres"));
        owner.options.schema = schema.clone();
        PgStore::migrate(&owner).await.unwrap();
        let grants = PgStore::grants(&owner.options, &schema).unwrap();
        server.sql(&format!(
            "CREATE ROLE {schema} LOGIN; {grants} CREATE TABLE {schema}.effects (record bigint NOT NULL); \
             GRANT SELECT, INSERT ON {schema}.effects TO {schema}"
        ));
        let mut config = PgConfig::new(server.url(&schema));
        config.options.schema = schema.clone();
        config.options.migrate = false;
        config.options.max_connections = 20;
        let store = PgStore::open(config).await.unwrap();
        Self { schema, store }
    }

    /// A transaction with the effect of a record in it.
    async fn effect(&self, record: u64) -> PgConn {
        let mut open = self.store.begin().await.unwrap();
        let sql = format!("INSERT INTO {}.effects VALUES ($1)", self.schema);
        let mut tx = self.store.lend(&mut open);
        sqlx::query(AssertSqlSafe(sql)).bind(record as i64).execute(&mut *tx).await.unwrap();
        open
    }

    async fn process(&self, owner: &Ownership, offset: u64) -> MarkedCommit {
        let open = self.effect(offset).await;
        self.store.commit_at(open, &scope(), &mark(owner, &[offset]), None).await.unwrap()
    }

    /// Processes records, each twice, until another owner has taken over; some transactions die with their connection.
    async fn work(&self, owner: &Ownership, offsets: &[u64]) {
        for offset in offsets.iter().flat_map(|offset| [*offset; 2]) {
            let open = self.effect(offset).await;
            if fastrand::u8(..10) == 0 {
                drop(open);
                continue;
            }
            match self.store.commit_at(open, &scope(), &mark(owner, &[offset]), None).await.unwrap() {
                MarkedCommit::Committed | MarkedCommit::Processed => {}
                MarkedCommit::NotOwner => return,
                MarkedCommit::Fenced => panic!("no key was claimed"),
            }
        }
    }

    /// How many effects each record has had.
    fn effects(&self) -> BTreeMap<u64, u32> {
        let sql = format!("SELECT record FROM {}.effects", self.schema);
        let mut effects = BTreeMap::new();
        for record in Postgres::shared().sql(&sql).lines() {
            *effects.entry(record.parse().unwrap()).or_default() += 1;
        }
        effects
    }
}

fn partition(partition: u32) -> LogPartition {
    LogPartition { group: "billing".into(), incarnation: "cluster/topic".into(), partition }
}

fn mark(owner: &Ownership, offsets: &[u64]) -> MarkRequest {
    let Ownership { partition, epoch, .. } = owner.clone();
    MarkRequest { partition, epoch, offsets: offsets.to_vec(), floor: 0 }
}

fn once_each(records: impl IntoIterator<Item = u64>) -> BTreeMap<u64, u32> {
    records.into_iter().map(|record| (record, 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_finds_what_the_last_one_had_processed() {
    let place = Place::new().await;
    let first = place.store.own(&scope(), &partition(0)).await.unwrap();
    assert_eq!((first.watermark, first.is_done(0)), (None, false));
    for offset in [0, 3, 1, 5] {
        assert_eq!(place.process(&first, offset).await, MarkedCommit::Committed, "{offset}");
    }
    let second = place.store.own(&scope(), &partition(0)).await.unwrap();
    assert!(second.epoch > first.epoch);
    assert_eq!((second.watermark, &second.done[..]), (Some(2), &[3, 5][..]));
    assert_eq!(place.process(&second, 2).await, MarkedCommit::Committed);
    // Offsets that no record has: the owner says that there is nothing below 90 that it has not processed.
    let open = place.effect(91).await;
    let request = MarkRequest { floor: 90, ..mark(&second, &[91]) };
    let committed = place.store.commit_at(open, &scope(), &request, None).await.unwrap();
    assert_eq!(committed, MarkedCommit::Committed);
    let third = place.store.own(&scope(), &partition(0)).await.unwrap();
    assert_eq!((third.watermark, &third.done[..]), (Some(90), &[91][..]));
    assert_eq!(place.process(&third, 90).await, MarkedCommit::Committed);
    let fourth = place.store.own(&scope(), &partition(0)).await.unwrap();
    assert_eq!((fourth.watermark, &fourth.done[..]), (Some(92), &[][..]));
    // The owner reports that nothing is missing between the offsets of the transaction.
    let open = place.effect(99).await;
    let request = MarkRequest { floor: 100, ..mark(&fourth, &[95, 99]) };
    let committed = place.store.commit_at(open, &scope(), &request, None).await.unwrap();
    assert_eq!(committed, MarkedCommit::Committed);
    assert_eq!(place.process(&fourth, 95).await, MarkedCommit::Processed);
    let fifth = place.store.own(&scope(), &partition(0)).await.unwrap();
    assert_eq!((fifth.watermark, &fifth.done[..]), (Some(100), &[][..]));
    // Other partitions, groups, logs and scopes are apart.
    let elsewhere = [
        (scope(), partition(1)),
        (scope(), LogPartition { group: "other".into(), ..partition(0) }),
        (scope(), LogPartition { incarnation: "recreated".into(), ..partition(0) }),
        (Scope::parse("audit").unwrap(), partition(0)),
    ];
    for (scope, partition) in elsewhere {
        let owned = place.store.own(&scope, &partition).await.unwrap();
        assert_eq!((owned.epoch, owned.watermark), (1, None), "{partition:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_processed_commits_nothing_a_second_time() {
    let place = Place::new().await;
    let owner = place.store.own(&scope(), &partition(0)).await.unwrap();
    for offset in [0, 4] {
        assert_eq!(place.process(&owner, offset).await, MarkedCommit::Committed);
        assert_eq!(place.process(&owner, offset).await, MarkedCommit::Processed);
    }
    // Nor does what comes with it.
    let open = place.effect(5).await;
    let batch = place.store.commit_at(open, &scope(), &mark(&owner, &[5, 4]), None).await.unwrap();
    assert_eq!(batch, MarkedCommit::Processed);
    assert_eq!(place.effects(), once_each([0, 4]));
    let open = place.effect(5).await;
    let batch = place.store.commit_at(open, &scope(), &mark(&owner, &[5, 6, 1]), None).await.unwrap();
    assert_eq!(batch, MarkedCommit::Committed);
    let owned = place.store.own(&scope(), &partition(0)).await.unwrap();
    assert_eq!((owned.watermark, &owned.done[..]), (Some(2), &[4, 5, 6][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_owner_that_wakes_up_commits_nothing_and_keeps_nobody_waiting() {
    let place = Place::new().await;
    let old = place.store.own(&self::scope(), &self::partition(0)).await.unwrap();
    assert_eq!(place.process(&old, 0).await, MarkedCommit::Committed);
    // It is paused in the middle of one transaction, and before another.
    let paused = place.effect(1).await;
    let (scope, partition) = (scope(), partition(0));
    let owning = place.store.own(&scope, &partition);
    let new = tokio::time::timeout(Duration::from_secs(5), owning).await;
    let new = new.expect("it waited for the old owner").unwrap();
    assert_eq!(place.process(&new, 1).await, MarkedCommit::Committed);
    let late = place.store.commit_at(paused, &scope, &mark(&old, &[1]), None).await.unwrap();
    assert_eq!(late, MarkedCommit::NotOwner);
    // Not even a record that no owner has processed yet.
    assert_eq!(place.process(&old, 2).await, MarkedCommit::NotOwner);
    assert_eq!(place.effects(), once_each([0, 1]));
    assert_eq!(place.process(&new, 2).await, MarkedCommit::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_and_position_commit_together_or_not_at_all() {
    let place = Place::new().await;
    let owner = place.store.own(&scope(), &partition(0)).await.unwrap();
    let ttl = Duration::from_secs(3_600);
    let terms = ClaimTerms { lease: Duration::from_secs(60), ttl, max_attempts: 5 };
    let key = Key::of(&scope(), "order 1").unwrap();
    let request = ClaimRequest { key, owner: Entropy::system().token(), fingerprint: None, generation: 0 };
    let Ok(Claim::Claimed(claimed)) = place.store.claim(&scope(), &terms, &[request]).await.remove(0) else {
        panic!("not claimed")
    };
    let complete = CompleteRequest::new(claimed.lease, ttl);
    let state = async || place.store.inspect(&scope(), &key).await.unwrap().unwrap().state;

    let stale = Ownership { epoch: owner.epoch + 1, ..owner.clone() };
    let open = place.effect(0).await;
    let refused = place.store.commit_at(open, &scope(), &mark(&stale, &[0]), Some(&complete)).await.unwrap();
    assert_eq!((refused, state().await), (MarkedCommit::NotOwner, KeyState::Pending));

    let mut foreign = complete.clone();
    foreign.lease.fence += 1;
    let open = place.effect(0).await;
    let refused = place.store.commit_at(open, &scope(), &mark(&owner, &[0]), Some(&foreign)).await.unwrap();
    assert_eq!((refused, state().await), (MarkedCommit::Fenced, KeyState::Pending));

    let open = place.effect(0).await;
    let done = place.store.commit_at(open, &scope(), &mark(&owner, &[0]), Some(&complete)).await.unwrap();
    assert_eq!((done, state().await), (MarkedCommit::Committed, KeyState::Completed));
    assert_eq!(place.effects(), once_each([0]));
}

/// Owners take the partition from each other in the middle of their work, each with eight concurrent transactions, some
/// of which fail with their connections; every record is delivered at least twice.
#[tokio::test(flavor = "multi_thread")]
async fn owners_that_take_over_from_each_other_leave_one_effect_for_each_record() {
    const RECORDS: u64 = 400;
    const LANES: u64 = 8;
    let place = Arc::new(Place::new().await);
    let mut rounds = 0;
    let mut at_work: Vec<tokio::task::JoinHandle<()>> = Vec::new();
    loop {
        let owned = place.store.own(&scope(), &partition(7)).await.unwrap();
        // Those that worked meanwhile end without having committed any more.
        for lane in at_work.drain(..) {
            lane.await.unwrap();
        }
        let left: Vec<_> = (0..RECORDS).filter(|offset| !owned.is_done(*offset)).collect();
        if left.is_empty() {
            assert_eq!((owned.watermark, &owned.done[..]), (Some(RECORDS), &[][..]));
            break;
        }
        rounds += 1;
        for lane in 0..LANES {
            let (place, owned) = (Arc::clone(&place), owned.clone());
            let mine: Vec<_> = left.iter().copied().filter(|offset| offset % LANES == lane).collect();
            at_work.push(tokio::spawn(async move { place.work(&owned, &mine).await }));
        }
        // The next one takes over in the middle of their work.
        let enough = u32::try_from((RECORDS - left.len() as u64) + fastrand::u64(1..40)).unwrap();
        while place.effects().len() < enough as usize && !at_work.iter().all(|lane| lane.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(rounds > 5, "there were {rounds} owners only");
    assert_eq!(place.effects(), once_each(0..RECORDS));
}
