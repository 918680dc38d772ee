//! A server that crashes and recovers: what claims for commits may lose, and what is never lost.
//!
//! The process that writes the log of commits which do not wait for it is held before each crash: without that it would write them
//! within half a second, and the tests would only sometimes lose a claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use onceward::adapter::StoreAdmin;
use onceward::store::{Claim, Commit, FailRequest, KeyState, Lease, SharedCommit, TransactionalStore};
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, PipelineConfig, Scope, Store, tx_handler};
use onceward_postgres::{PgConfig, PgStore, PgTx};
use onceward_test_servers::postgres::Postgres;
use tokio_util::sync::CancellationToken;

use crate::store::{completion, key, lease, requests, scope, store_at, terms};

/// A server on which nothing but the test writes to the disk, and a store that has been used before.
async fn scene() -> (Postgres, PgStore) {
    let quiet = ["autovacuum=off", "bgwriter_lru_maxpages=0", "wal_writer_delay=10s"];
    let server = Postgres::start_with(&quiet);
    let store = store_at(&server.url("postgres")).await;
    server.sql("CREATE TABLE effects (name text NOT NULL)");
    let used = claim_for_commit(&store, 0).await;
    assert_eq!(commit_one(&store, used, "used").await, Commit::Committed);
    (server, store)
}

async fn claim_for_commit(store: &PgStore, n: u32) -> Lease {
    lease(store.claim_for_commit(&scope(), &terms(), &requests([n])).await[0].as_ref().unwrap())
}

async fn write(mut tx: PgTx<'_>, effect: &str) {
    sqlx::query("INSERT INTO effects VALUES ($1)").bind(effect).execute(&mut *tx).await.unwrap();
}

/// A transaction with an effect. The first attempts find the connections that the crash has ended.
async fn transaction(store: &PgStore, effect: &str) -> <PgStore as TransactionalStore>::Conn {
    let mut open = store.begin().await.unwrap();
    write(store.lend(&mut open), effect).await;
    open
}

async fn commit_one(store: &PgStore, held: Lease, effect: &str) -> Commit {
    let open = transaction(store, effect).await;
    store.commit(open, &scope(), &completion(held)).await.unwrap()
}

async fn commit_in_a_shared_one(store: &PgStore, held: Lease, effect: &str) -> Commit {
    let mut open = store.begin_shared().await.unwrap();
    write(store.lend(&mut open), effect).await;
    match store.commit_shared(open, &scope(), &[completion(held)]).await.unwrap() {
        SharedCommit::Committed => Commit::Committed,
        SharedCommit::RolledBack => Commit::Fenced,
    }
}

fn effects(server: &Postgres) -> String {
    server.sql("SELECT string_agg(name, ',' ORDER BY name) FROM effects WHERE name <> 'used'")
}

async fn state(store: &PgStore, n: u32) -> Option<KeyState> {
    store.inspect(&scope(), &key(n)).await.unwrap().map(|record| record.state)
}

/// When the run with the forgotten claim commits, beside the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    First,
    BeforeTheOtherClaims,
    Last,
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_whose_claim_a_crash_forgets_and_the_run_after_it_one_commits() {
    use Order::*;
    let (server, store) = scene().await;
    let mut n = 0;
    for order in [First, BeforeTheOtherClaims, Last] {
        for shared in [false, true] {
            n += 1;
            let commit = async |held: Lease, effect: &str| match shared {
                true => commit_in_a_shared_one(&store, held, effect).await,
                false => commit_one(&store, held, effect).await,
            };
            let wal_writer = server.hold_wal_writer();
            let forgotten = claim_for_commit(&store, n).await;
            let open = transaction(&store, "before the crash").await;
            assert_eq!(server.sql("SELECT count(*) FROM onceward.keys WHERE state = 1"), "1");
            server.crash(wal_writer);
            let lost = store.commit(open, &scope(), &completion(forgotten)).await;
            assert!(lost.is_err(), "its session has ended: {lost:?}");
            assert_eq!(state(&store, n).await, None, "{order:?}: the crash has not forgotten the claim");

            // Its owner goes on under the claim it knows, as it does after a lost connection.
            if order == BeforeTheOtherClaims {
                assert_eq!(commit(forgotten, "forgotten").await, Commit::Fenced);
            }
            let held = claim_for_commit(&store, n).await;
            assert!(held.owner != forgotten.owner && held.fence > forgotten.fence);
            if order == First {
                assert_eq!(commit(forgotten, "forgotten").await, Commit::Fenced);
            }
            assert_eq!(commit(held, &n.to_string()).await, Commit::Committed);
            if order == Last {
                assert_eq!(commit(forgotten, "forgotten").await, Commit::Fenced);
            }
            // What is committed outlives the next crash.
            server.crash(server.hold_wal_writer());
            let again = store.claim_for_commit(&scope(), &terms(), &requests([n])).await.remove(0).unwrap();
            assert!(matches!(again, Claim::Completed { .. }), "{order:?}: {again:?}");
        }
    }
    assert_eq!(effects(&server), "1,2,3,4,5,6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_forgets_no_other_claim_and_nothing_that_is_written_under_one() {
    let (server, store) = scene().await;
    let (scope, terms) = (scope(), terms());
    let crash = || server.crash(server.hold_wal_writer());

    let wal_writer = server.hold_wal_writer();
    let held = lease(store.claim(&scope, &terms, &requests([1])).await[0].as_ref().unwrap());
    server.crash(wal_writer);
    let record = store.inspect(&scope, &key(1)).await.unwrap().unwrap();
    assert_eq!((record.state, record.fence), (KeyState::Pending, held.fence), "the claim of a plain run");

    let wal_writer = server.hold_wal_writer();
    let failing = claim_for_commit(&store, 2).await;
    let request = FailRequest { lease: failing, error: "no luck".into(), terminal: None };
    store.fail(&scope, &[request]).await.remove(0).unwrap();
    server.crash(wal_writer);
    let record = store.inspect(&scope, &key(2)).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempts), (KeyState::Failed, 1), "a failed run");

    // Claimed again, with its attempt: a claim of a known key is not one that may be forgotten.
    let wal_writer = server.hold_wal_writer();
    let second = claim_for_commit(&store, 2).await;
    server.crash(wal_writer);
    let record = store.inspect(&scope, &key(2)).await.unwrap().unwrap();
    assert_eq!((record.state, record.fence, record.attempts), (KeyState::Pending, second.fence, 1));
    assert_eq!(commit_one(&store, second, "2").await, Commit::Committed);
    crash();
    assert_eq!((state(&store, 2).await, effects(&server)), (Some(KeyState::Completed), "2".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_not_answered_before_the_standbys_that_commits_wait_for() {
    let server = Postgres::start();
    let mut config = PgConfig::new(server.url("postgres"));
    config.options.statement_timeout = Duration::from_secs(1);
    let store = PgStore::open(config).await.unwrap();
    let held = lease(store.claim(&scope(), &terms(), &requests([1])).await[0].as_ref().unwrap());
    store.complete(&scope(), &[completion(held)]).await.remove(0).unwrap();
    let ask = async || store.claim(&scope(), &terms(), &requests([1])).await.remove(0);
    assert!(matches!(ask().await, Ok(Claim::Completed { .. })));
    // The completion is here, and no standby has confirmed it.
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'");
    server.sql("SELECT pg_reload_conf()");
    let waits = || server.sql("SHOW synchronous_standby_names") == "away";
    assert!(onceward_test_servers::process::wait_until(Duration::from_secs(20), waits));
    let answer = ask().await;
    assert!(answer.as_ref().is_err_and(onceward::Error::is_retryable), "{answer:?}");
    server.sql("ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("SELECT pg_reload_conf()");
    assert!(onceward_test_servers::process::wait_until(Duration::from_secs(20), || !waits()));
    let end = Instant::now() + Duration::from_secs(20);
    while !matches!(ask().await, Ok(Claim::Completed { .. })) {
        assert!(Instant::now() < end, "the duplicate is not answered without standbys");
    }
}

/// What the handlers of the pipeline share.
#[derive(Clone, Default)]
struct Runs {
    started: Arc<AtomicUsize>,
}

async fn slow(runs: Runs, message: Message, mut tx: PgTx<'_>) -> Handled {
    runs.started.fetch_add(1, Ordering::Relaxed);
    let effect = String::from_utf8_lossy(message.payload()).into_owned();
    sqlx::query("INSERT INTO effects SELECT $1 FROM pg_sleep(0.02)").bind(effect).execute(&mut *tx).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_server_crashes_under_it_has_each_effect_once() {
    const COUNT: usize = 300;
    for transaction_batch in [1, 16] {
        let (server, store) = scene().await;
        let (broker, runs) = (MemoryBroker::finite(), Runs::default());
        (0..COUNT).for_each(|n| broker.publish(Message::builder(format!("{n:03}"))));
        let config = PipelineConfig {
            transaction_batch,
            concurrency: 16,
            // Losses of the connection use an attempt.
            retry: onceward::retry::RetryPolicy { max_attempts: 100, ..Default::default() },
            lease: Duration::from_secs(5),
            ..PipelineConfig::default()
        };
        let scope = Scope::parse("crashing").unwrap();
        let pipeline = Pipeline::builder(scope.clone(), broker.consumer(), Arc::new(store.clone()))
            .keys([KeySource::PayloadHash])
            .config(config)
            .park_exhausted()
            .transactional_handler(tx_handler(&store, runs.clone(), slow))
            .unwrap();
        let task = tokio::spawn(pipeline.run(CancellationToken::new()));
        for crashes in 1..=3 {
            let wal_writer = server.hold_wal_writer();
            // Claims are taken meanwhile, and runs are under way.
            while runs.started.load(Ordering::Relaxed) < crashes * 40 {
                assert!(!task.is_finished(), "it ended before the crash");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            server.crash(wal_writer);
        }
        let summary = task.await.unwrap().unwrap();
        assert_eq!(summary.dead_lettered(), 0);
        let count = |sql: &str| server.sql(sql).parse::<usize>().unwrap();
        let effects = "SELECT count(*) FROM effects WHERE name <> 'used'";
        assert_eq!(count(effects), COUNT);
        assert_eq!(count(&effects.replace("count(*)", "count(DISTINCT name)")), COUNT);
        assert_eq!(store.stats(&scope).await.unwrap().get(KeyState::Completed), COUNT as u64);
    }
}
