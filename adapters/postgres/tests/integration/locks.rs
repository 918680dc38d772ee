//! Rows and tables that others have locked, on a real server: what is contention, what is trouble of the store, what is
//! unknown; and that none of it costs connections.

use std::time::Duration;

use onceward::store::{Claim, Completion};
use onceward::{ErrorKind, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::process::wait_until;
use sqlx::{Connection, PgConnection};

use crate::store::{completion, key, lease, requests, scope, store_at, terms};

/// What the pool of a store may hold.
const POOL: u64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_costs_no_connections() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let first = store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap();
    assert!(matches!(store.release(&scope(), &[lease(&first)]).await[..], [Ok(true)]));
    let mut rival = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let mut open = rival.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM onceward.keys FOR UPDATE").execute(&mut *open).await.unwrap();
    for round in 0..20 {
        let answers = store.claim(&scope(), &terms(), &requests(0..64)).await;
        for (n, answer) in answers.iter().enumerate() {
            // From the second round on the others are claimed already, for long.
            match answer.as_ref().unwrap() {
                Claim::InProgress { retry_in } if n == 1 => assert!(*retry_in < Duration::from_secs(1)),
                Claim::InProgress { retry_in } => assert!(round > 0 && *retry_in > Duration::from_secs(1)),
                claim => assert!(n != 1 && round == 0, "{n}: {claim:?}"),
            }
        }
    }
    assert!(store.opened_connections() <= 2, "{} connections", store.opened_connections());
    open.rollback().await.unwrap();
    let freed = store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap();
    let _ = lease(&freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_that_nobody_sees_yet_are_found_in_one_go() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    // The scope has its number.
    let _ = lease(&store.claim(&scope(), &terms(), &requests([9_999])).await.remove(0).unwrap());
    let mut rival = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let mut open = rival.begin().await.unwrap();
    for n in 0..100 {
        sqlx::query(
            "INSERT INTO onceward.keys (scope, fence, lease_until, first_at, written_at, ttl, expires_at, attempts, \
             lost, generation, state, started, key, owner) SELECT scope, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, false, $1, owner \
             FROM onceward.keys LIMIT 1",
        )
        .bind(key(2 * n).as_bytes().as_slice())
        .execute(&mut *open)
        .await
        .unwrap();
    }
    let answers = store.claim(&scope(), &terms(), &requests(0..200)).await;
    for (n, answer) in answers.iter().enumerate() {
        let is_held = matches!(answer.as_ref().unwrap(), Claim::InProgress { .. });
        assert_eq!(is_held, n % 2 == 0, "{n}: {answer:?}");
    }
    assert!(store.opened_connections() <= 2, "{} connections", store.opened_connections());
    open.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_is_trouble_of_the_store_and_costs_no_connections() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let claim = store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap();
    let mut rival = PgConnection::connect(&server.url("postgres")).await.unwrap();
    // As VACUUM FULL has it, and as CREATE INDEX has it, which reads on.
    for mode in ["ACCESS EXCLUSIVE", "SHARE"] {
        let mut open = rival.begin().await.unwrap();
        let lock = format!("LOCK TABLE onceward.keys IN {mode} MODE");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut *open).await.unwrap();
        for _ in 0..4 {
            for answer in store.claim(&scope(), &terms(), &requests(0..256)).await {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
            }
        }
        let done = store.complete(&scope(), &[completion(lease(&claim))]).await.remove(0);
        assert!(done.as_ref().is_err_and(onceward::Error::is_retryable), "{done:?}");
        open.rollback().await.unwrap();
    }
    assert!(store.opened_connections() <= POOL, "{} connections", store.opened_connections());
    let done = store.complete(&scope(), &[completion(lease(&claim))]).await.remove(0);
    assert!(matches!(done, Ok(Completion::Completed)), "{done:?}");
}

/// The number of processes whose commit waits for a standby.
const HANGING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

/// Has the server wait for a standby that is not there, from the next commit on.
///
/// The server's processes read their configuration one after the other, and commits wait once its checkpointer has read it: so probes
/// are committed until one waits. That one is cancelled, which ends its wait.
fn lose_the_standby(server: &Postgres) {
    server.sql("CREATE TABLE public.probes (n int)");
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'");
    server.sql("SELECT pg_reload_conf()");
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let cancelled = wait_until(Duration::from_secs(60), || {
        std::thread::scope(|threads| {
            let probe = threads.spawn(|| server.sql("INSERT INTO public.probes VALUES (1)"));
            let mut cancelled = false;
            while !probe.is_finished() {
                cancelled |= server.sql(cancel) != "0";
            }
            cancelled
        })
    });
    assert!(cancelled, "no commit waits for the standby");
}

/// A synchronous standby that does not answer: a claim is written, and its commit waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_claim_that_meets_its_own_first_call_is_unknown_and_then_its_own() {
    let server = Postgres::start();
    let mut config = PgConfig::new(server.url("postgres"));
    config.options.statement_timeout = Duration::from_millis(1_500);
    let store = PgStore::open(config).await.unwrap();
    // The scope has its number.
    let _ = lease(&store.claim(&scope(), &terms(), &requests([9_999])).await.remove(0).unwrap());
    lose_the_standby(&server);
    let request = requests([1]);
    let first = tokio::spawn({
        let (store, request) = (store.clone(), request.clone());
        async move { store.claim(&scope(), &terms(), &request).await.remove(0) }
    });
    assert!(wait_until(Duration::from_secs(30), || server.sql(HANGING) == "1"), "no commit waits");
    // While it is under way, and after it was given up.
    for _ in 0..2 {
        for _ in 0..5 {
            let error = store.claim(&scope(), &terms(), &request).await.remove(0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        }
        while !first.is_finished() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(first.await.unwrap().is_err());
    // Another owner meets contention, as ever.
    let others = store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap();
    assert!(matches!(others, Claim::InProgress { .. }), "{others:?}");
    assert_eq!(server.sql(HANGING), "1", "each repeat left one more process that waits");
    server.sql("ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("SELECT pg_reload_conf()");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let claimed = loop {
        match store.claim(&scope(), &terms(), &request).await.remove(0) {
            Ok(claim) => break claim,
            Err(error) => assert!(error.is_retryable() && std::time::Instant::now() < end, "{error:?}"),
        }
    };
    let Claim::Claimed(claimed) = claimed else { panic!("{claimed:?}") };
    assert_eq!((claimed.lost, claimed.attempt), (0, 1));
}

/// Each key of its own, while nothing can be committed: the number of processes that wait is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_standby_leaves_no_pile_of_waiting_processes() {
    let server = Postgres::start();
    let mut config = PgConfig::new(server.url("postgres"));
    config.options.max_connections = 3;
    config.options.connect_timeout = Duration::from_millis(300);
    config.options.statement_timeout = Duration::from_millis(300);
    let store = PgStore::open(config).await.unwrap();
    let _ = lease(&store.claim(&scope(), &terms(), &requests([9_999])).await.remove(0).unwrap());
    lose_the_standby(&server);
    for n in 0..12 {
        let answer = store.claim(&scope(), &terms(), &requests([n])).await.remove(0);
        assert!(answer.as_ref().is_err_and(onceward::Error::is_retryable), "{answer:?}");
    }
    let waiting: u32 = server.sql(HANGING).parse().unwrap();
    assert!((1..=3).contains(&waiting), "{waiting} processes wait");
    server.sql("ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("SELECT pg_reload_conf()");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while store.claim(&scope(), &terms(), &requests([100])).await[0].is_err() {
        assert!(std::time::Instant::now() < end, "the store did not come back");
    }
}

/// As when a purge removes an expired row between two statements of a claim.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_vanishes_under_a_claim_has_it_repeated_and_costs_no_connection() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let request = requests([1]);
    let first = lease(&store.claim(&scope(), &terms(), &request).await.remove(0).unwrap());
    let mut rival = PgConnection::connect(&server.url("postgres")).await.unwrap();
    // The first statement is no transaction: it inserts what is new.
    let vanish = "CREATE SEQUENCE public.tries; \
         CREATE FUNCTION public.vanish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF pg_catalog.nextval('public.tries') BETWEEN 2 AND 4 THEN DELETE FROM onceward.keys; END IF; RETURN NULL; END $$; \
         CREATE TRIGGER vanish AFTER INSERT ON onceward.keys FOR EACH STATEMENT EXECUTE FUNCTION public.vanish()";
    sqlx::raw_sql(vanish).execute(&mut rival).await.unwrap();
    let before = store.opened_connections();
    let again = store.claim(&scope(), &terms(), &request).await.remove(0).unwrap();
    assert_eq!(lease(&again), first, "the claim recognises itself");
    assert_eq!(server.sql("SELECT last_value FROM public.tries"), "5", "three times it vanished");
    assert_eq!(store.opened_connections(), before, "the connection was in order");
}
