//! Trouble with a real server: restarts, killed backends, a read-only primary, rivals that hold locks, silence.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use onceward::adapter::StoreAdmin;
use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, Completion, Entropy, KeyState, Lease,
    TransactionalStore,
};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgOptions, PgStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::proxy::Proxy;
use sqlx::{Connection, PgConnection};

const TTL: Duration = Duration::from_secs(3_600);

fn scope() -> Scope {
    Scope::parse("faults").unwrap()
}

fn terms() -> ClaimTerms {
    ClaimTerms { lease: Duration::from_secs(60), ttl: TTL, max_attempts: 5 }
}

fn key(n: u32) -> Key {
    Key::of(&scope(), format!("order {n}")).unwrap()
}

fn requests(numbers: impl IntoIterator<Item = u32>) -> Vec<ClaimRequest> {
    let mut entropy = Entropy::system();
    let request = |n| ClaimRequest { key: key(n), owner: entropy.token(), fingerprint: None, generation: 0 };
    numbers.into_iter().map(request).collect()
}

fn completion(lease: Lease) -> CompleteRequest {
    CompleteRequest::new(lease, TTL)
}

fn lease(claim: &Claim) -> Lease {
    match claim {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("not claimed: {other:?}"),
    }
}

async fn store_at(url: &str) -> PgStore {
    let mut config = PgConfig::new(url);
    config.options.connect_timeout = Duration::from_secs(2);
    config.options.statement_timeout = Duration::from_secs(2);
    PgStore::open(config).await.unwrap()
}

/// Claims and completes every key once, and retries failed requests with the same token, as the pipeline does.
/// Returns how many leases each key was given.
async fn work_through(store: PgStore, numbers: std::ops::Range<u32>) -> HashMap<Key, u32> {
    let mut runs = HashMap::new();
    for n in numbers {
        let request = requests([n]);
        let end = Instant::now() + Duration::from_secs(60);
        let lease = loop {
            assert!(Instant::now() < end, "key {n} could not be claimed within a minute");
            match store.claim(&scope(), &terms(), &request).await.remove(0) {
                Ok(claim) => break lease(&claim),
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        };
        *runs.entry(lease.key).or_default() += 1;
        loop {
            assert!(Instant::now() < end, "key {n} could not be completed within a minute");
            match store.complete(&scope(), &[completion(lease)]).await.remove(0) {
                Ok(Completion::Completed | Completion::Repeated) => break,
                Ok(other) => panic!("key {n}: {other:?}"),
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        }
    }
    runs
}

async fn assert_all_completed(store: &PgStore, count: u64) {
    let stats = store.stats(&scope()).await.unwrap();
    assert_eq!((stats.get(KeyState::Completed), stats.total()), (count, count), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stopped_at_once_and_restarted_loses_no_claim_and_no_completion() {
    let mut server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let work = tokio::spawn(work_through(store.clone(), 0..400));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server = tokio::task::spawn_blocking(move || {
            server.stop_immediate();
            server.start_again();
            server
        })
        .await
        .unwrap();
    }
    assert!(!work.is_finished(), "the restarts came too late to hurt");
    assert_eq!(work.await.unwrap().len(), 400);
    assert_all_completed(&store, 400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_backends_lose_no_claim_and_no_completion() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let work = tokio::spawn(work_through(store.clone(), 0..400));
    let mut killed = 0;
    while !work.is_finished() {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'onceward'";
        killed += server.sql(sql).parse::<u32>().unwrap();
    }
    assert!(killed > 0, "nothing was killed");
    assert_eq!(work.await.unwrap().len(), 400);
    assert_all_completed(&store, 400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_primary_refuses_for_a_while_and_is_found_by_the_check() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let request = requests([1]);
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    // The reload reaches each session with a delay: once it has, every claim fails.
    let end = Instant::now() + Duration::from_secs(20);
    let error = loop {
        assert!(Instant::now() < end, "the server never became read-only");
        match store.claim(&scope(), &terms(), &request).await.remove(0) {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => break error,
        }
    };
    assert!(error.is_retryable() && error.to_string().contains("read-only"), "{error}");
    let advice = store.check().await.unwrap();
    assert!(advice.iter().any(|line| line.text.contains("read-only")), "{advice:?}");
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.sql("SELECT pg_reload_conf()");
    let end = Instant::now() + Duration::from_secs(20);
    while store.claim(&scope(), &terms(), &request).await[0].is_err() {
        assert!(Instant::now() < end, "the store did not come back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_holds_a_row_for_long_is_in_progress_and_the_others_go_on() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let first = store.claim(&scope(), &terms(), &requests(0..20)).await;
    for claim in &first {
        let freed = store.release(&scope(), &[lease(claim.as_ref().unwrap())]).await;
        assert!(matches!(freed[..], [Ok(true)]), "{freed:?}");
    }
    let mut rival = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let mut open = rival.begin().await.unwrap();
    // One row that is committed, and one that no other transaction sees yet.
    let held = [key(3), key(25)];
    sqlx::query("SELECT 1 FROM onceward.keys WHERE key = $1 FOR UPDATE")
        .bind(held[0].as_bytes().as_slice())
        .execute(&mut *open)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO onceward.keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, attempts, lost, \
         generation, state, started, key, owner) SELECT scope, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, false, $1, owner \
         FROM onceward.keys LIMIT 1",
    )
    .bind(held[1].as_bytes().as_slice())
    .execute(&mut *open)
    .await
    .unwrap();

    let began = Instant::now();
    let batch = requests(0..40);
    let answers = store.claim(&scope(), &terms(), &batch).await;
    assert!(began.elapsed() < Duration::from_secs(8), "took {:?}", began.elapsed());
    for (request, answer) in batch.iter().zip(&answers) {
        match answer.as_ref().unwrap() {
            Claim::InProgress { .. } => assert!(held.contains(&request.key)),
            claim => assert!(!held.contains(&lease(claim).key)),
        }
    }
    open.rollback().await.unwrap();
    let again: Vec<_> = batch.into_iter().filter(|request| held.contains(&request.key)).collect();
    for answer in store.claim(&scope(), &terms(), &again).await {
        let _ = lease(&answer.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_dropped_in_a_stalled_begin_leaves_the_pool_clean() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.address()).unwrap();
    let url = Postgres::url_at(proxy.address(), "postgres");
    let mut config = PgConfig::new(&url);
    config.options.max_connections = 1;
    config.options.connect_timeout = Duration::from_secs(10);
    config.options.statement_timeout = Duration::from_secs(2);
    let store = PgStore::open(config).await.unwrap();
    let _ = lease(store.claim(&scope(), &terms(), &requests([1])).await[0].as_ref().unwrap());
    let open = store.begin().await.unwrap();
    store.rollback(open).await;
    proxy.partition();
    let short = Duration::from_millis(100);
    assert!(tokio::time::timeout(short, store.begin()).await.is_err());
    assert!(tokio::time::timeout(short, store.claim(&scope(), &terms(), &requests([2]))).await.is_err());
    proxy.heal();
    let request = requests([3]);
    let taken = loop {
        match store.claim(&scope(), &terms(), &request).await.remove(0) {
            Ok(claim) => break lease(&claim),
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    };
    // What the next borrower writes is seen by everybody: it was no part of a forgotten transaction.
    let done = store.complete(&scope(), &[completion(taken)]).await;
    assert!(matches!(done[..], [Ok(Completion::Completed)]), "{done:?}");
    let seen = server.sql("SELECT count(*) FROM onceward.keys WHERE state = 4");
    assert_eq!(seen, "1");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    let clean =
        onceward_test_servers::process::wait_until(Duration::from_secs(10), || server.sql(idle) == "0");
    assert!(clean, "a transaction was left open");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_brings_its_own_pool_and_a_completion_is_durable_whatever_that_is_set_to() {
    let server = Postgres::start();
    let options = server.url("postgres").parse::<sqlx::postgres::PgConnectOptions>().unwrap();
    let options = options.options([("synchronous_commit", "off")]);
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let store = PgStore::from_client(pool.clone(), PgOptions::default()).await.unwrap();
    // A deferred trigger sees what the commit goes by.
    sqlx::raw_sql(
        "CREATE TABLE effects (n int); CREATE TABLE seen (setting text); \
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER see AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION see()",
    )
    .execute(&pool)
    .await
    .unwrap();

    let taken = lease(store.claim(&scope(), &terms(), &requests([1])).await[0].as_ref().unwrap());
    let mut open = store.begin().await.unwrap();
    assert_eq!(pool.num_idle(), 0, "the transaction is not the pool's");
    let mut tx = store.lend(&mut open);
    sqlx::query("INSERT INTO effects VALUES (1)").execute(&mut *tx).await.unwrap();
    let done = store.commit(open, &scope(), &completion(taken)).await.unwrap();
    assert_eq!(done, Commit::Committed);
    assert_eq!(server.sql("SELECT count(*) FROM effects"), "1");
    assert_eq!(server.sql("SELECT setting FROM seen"), "on");
    // The pool's own setting is back.
    let after: String = sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&pool).await.unwrap();
    assert_eq!(after, "off");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_and_a_newer_schema_are_refused_and_several_programs_may_migrate_at_once() {
    let server = Postgres::start();
    let config = || {
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.schema = "orders_2".into();
        config
    };
    let mut worker = config();
    worker.options.migrate = false;
    let error = PgStore::open(worker).await.unwrap_err();
    assert!(error.to_string().contains("run its migrations first"), "{error}");
    let (one, two) = (config(), config());
    let (a, b) = tokio::join!(PgStore::migrate(&one), PgStore::migrate(&two));
    assert_eq!(a.unwrap() + b.unwrap(), onceward_migrations::latest(onceward_migrations::POSTGRES));
    server.sql("INSERT INTO orders_2.migrations (version, name) VALUES (999, 'later')");
    server.sql("UPDATE orders_2.meta SET value = 999 WHERE name = 'needs'");
    let error = PgStore::open(config()).await.unwrap_err();
    assert!(error.to_string().contains("upgrade this program"), "{error}");
    server.sql("DELETE FROM orders_2.meta WHERE name = 'needs'");
    assert!(PgStore::open(config()).await.is_err(), "nothing says that this program will do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_release_migrates_under_load_and_the_older_one_goes_on() {
    let server = Postgres::start();
    let older = store_at(&server.url("postgres")).await;
    let before = tokio::spawn(work_through(older.clone(), 0..300));
    // What a newer release's step may do: add what older ones do not ask for.
    server.sql(
        "ALTER TABLE onceward.keys ADD COLUMN note text NOT NULL DEFAULT ''; \
         CREATE TABLE onceward.more (n int); INSERT INTO onceward.migrations (version, name) VALUES (999, 'more')",
    );
    assert!(!before.is_finished(), "the step came too late to hurt");
    // One that was running, and one of the older release that is started only now.
    let restarted = store_at(&server.url("postgres")).await;
    let after = tokio::spawn(work_through(restarted.clone(), 300..600));
    assert_eq!((before.await.unwrap().len(), after.await.unwrap().len()), (300, 300));
    assert_all_completed(&restarted, 600).await;
    let known = older.claim(&scope(), &terms(), &requests([599])).await.remove(0).unwrap();
    assert!(matches!(known, Claim::Completed { .. }), "{known:?}");
}
