//! Tests of opening connections on a real server: slow answers, passwords that change, temporary refusals.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::store::{Commit, Completion, TransactionalStore};
use onceward::{Error, ErrorKind, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::proxy::{Direction, Flow, Proxy};

use crate::store::{completion, lease, requests, scope, store_at, terms};

/// As long as a loaded machine may need.
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_slowly_lets_in_again_after_its_connections_were_lost() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.address()).unwrap();
    let mut config = PgConfig::new(Postgres::url_at(proxy.address(), "postgres"));
    // As the program has it with a timeout of 5 s.
    let limit = Duration::from_millis(4_500);
    config.options.connect_timeout = limit;
    config.options.statement_timeout = limit;
    let store = PgStore::open(config).await.unwrap();
    let _ = lease(&store.claim(&scope(), &terms(), &requests([0])).await.remove(0).unwrap());
    proxy.set(Direction::ToClient, Flow::Delay(Duration::from_secs(3)));
    proxy.cut();
    let end = Instant::now() + LONG;
    for n in 1..4 {
        let request = requests([n]);
        let claimed = loop {
            let claims = async { store.claim(&scope(), &terms(), &request).await };
            match tokio::time::timeout(Duration::from_secs(5), claims).await {
                Ok(mut claims) => match claims.remove(0) {
                    Ok(claim) => break lease(&claim),
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                },
                Err(_) => assert!(Instant::now() < end, "key {n} was never claimed"),
            }
            assert!(Instant::now() < end, "key {n} was never claimed");
        };
        loop {
            let done = async { store.complete(&scope(), &[completion(claimed)]).await };
            if let Ok(mut done) = tokio::time::timeout(Duration::from_secs(5), done).await
                && let Ok(Completion::Completed | Completion::Repeated) = done.remove(0)
            {
                break;
            }
            assert!(Instant::now() < end, "key {n} was never completed");
        }
    }
    // Openings are not thrown away: a few connections do.
    assert!(store.opened_connections() <= 8, "{} connections", store.opened_connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_replaced_and_not_tried_one_after_the_other() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.address()).unwrap();
    let mut config = PgConfig::new(Postgres::url_at(proxy.address(), "postgres"));
    config.options.statement_timeout = Duration::from_secs(1);
    let store = PgStore::open(config).await.unwrap();
    let batch: Vec<_> = (0..8).map(|n| requests([n])).collect();
    let all = batch.iter().map(|request| {
        let (store, request) = (store.clone(), request.clone());
        tokio::spawn(async move { store.claim(&scope(), &terms(), &request).await.remove(0).map(drop) })
    });
    for claimed in all.collect::<Vec<_>>() {
        claimed.await.unwrap().unwrap();
    }
    proxy.half_open();
    let mut silent = 0;
    while store.claim(&scope(), &terms(), &requests([100])).await[0].is_err() {
        silent += 1;
        assert!(silent < 3, "one call after the other meets a connection that is half open");
    }
}

/// A role that needs its password; no other role does.
fn with_password(server: &Postgres) {
    server.sql("CREATE ROLE app SUPERUSER LOGIN PASSWORD 'one'");
    let lines = "SELECT unnest(ARRAY['host all app 127.0.0.1/32 scram-sha-256', 'host all all 127.0.0.1/32 trust', \
                 'local all all trust'])";
    let file = server.sql("SHOW hba_file");
    server.sql(&format!("COPY ({lines}) TO '{file}'"));
    server.sql("SELECT pg_reload_conf()");
}

const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_used_by_every_kind_of_connection_without_a_restart() {
    let server = Postgres::start();
    with_password(&server);
    let current = Arc::new(Mutex::new(Ok("one".to_owned())));
    let source = Arc::clone(&current);
    let mut config = PgConfig::new(server.url("app"));
    config.endpoint.password_from = Some(Arc::new(move || {
        let current = source.lock().unwrap().clone();
        current.map_err(|()| Error::new(ErrorKind::Config, "read the password", "the file is not there"))
    }));
    let store = PgStore::open(config).await.unwrap();
    let taken = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    let outbox = store.outbox();
    onceward::outbox::OutboxStore::wait(&outbox, Duration::from_millis(10)).await;
    let open = store.begin().await.unwrap();
    store.rollback(open).await;

    server.sql("ALTER ROLE app PASSWORD 'two'");
    server.sql(TERMINATE);
    let error = store.complete(&scope(), &[completion(taken)]).await.remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    // A file that is being replaced cannot be read for a moment.
    *current.lock().unwrap() = Err(());
    assert!(store.begin().await.is_err());
    *current.lock().unwrap() = Ok("two".to_owned());
    let open = store.begin().await.unwrap();
    assert_eq!(store.commit(open, &scope(), &completion(taken)).await.unwrap(), Commit::Committed);
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND query LIKE 'LISTEN%'";
    let end = Instant::now() + LONG;
    while server.sql(listens) == "0" {
        onceward::outbox::OutboxStore::wait(&outbox, Duration::from_millis(100)).await;
        assert!(Instant::now() < end, "nobody listens with the new password");
    }
}

/// The five ways in which a right or a password is revoked for a while: each answer leaves the claim to be completed.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_was_refused_for_a_while_is_accepted_afterwards() {
    let server = Postgres::start();
    with_password(&server);
    server.sql("CREATE ROLE worker LOGIN");
    let config = || {
        let mut config = PgConfig::new(server.url("worker"));
        config.options.migrate = false;
        config
    };
    PgStore::migrate(&PgConfig::new(server.url("postgres"))).await.unwrap();
    server.sql(&PgStore::grants(&config().options, "worker").unwrap());
    let end_sessions =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'worker'";
    let table = "ALTER TABLE onceward.keys";
    let rename = (format!("{table} RENAME TO away"), "ALTER TABLE onceward.away RENAME TO keys".to_owned());
    let cases = [
        (
            "REVOKE INSERT, UPDATE ON onceward.keys FROM worker",
            "GRANT INSERT, UPDATE ON onceward.keys TO worker",
        ),
        ("REVOKE USAGE ON SCHEMA onceward FROM worker", "GRANT USAGE ON SCHEMA onceward TO worker"),
        ("ALTER ROLE worker NOLOGIN", "ALTER ROLE worker LOGIN"),
        (&*rename.0, &*rename.1),
        ("ALTER ROLE worker SET default_transaction_read_only = on", "ALTER ROLE worker RESET ALL"),
    ];
    for (n, (take, give)) in (0..).zip(cases) {
        let store = PgStore::open(config()).await.unwrap();
        let claims = store.claim(&scope(), &terms(), &requests(16 * n..16 * n + 16)).await;
        let done: Vec<_> = claims.iter().map(|claim| completion(lease(claim.as_ref().unwrap()))).collect();
        server.sql(take);
        server.sql(end_sessions);
        for answer in store.complete(&scope(), &done).await {
            let error = answer.unwrap_err();
            assert!(!matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unknown), "{take}: {error:?}");
        }
        server.sql(give);
        let end = Instant::now() + LONG;
        loop {
            let answers = store.complete(&scope(), &done).await;
            let refused = answers.into_iter().find_map(Result::err);
            let Some(error) = refused else { break };
            assert!(Instant::now() < end, "{give}: {error:?}");
            // A session that is read-only stays so until it ends.
            server.sql(end_sessions);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let again = store.complete(&scope(), &done).await;
        assert!(again.iter().all(|answer| matches!(answer, Ok(Completion::Repeated))), "{take}: {again:?}");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_errors_of_the_server_or_a_pooler_are_not_taken_for_damage_of_keys() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let taken = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    for code in ["XX000", "XX001", "57P05", "53200", "26000"] {
        server.sql(&format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'in passing' USING ERRCODE = '{code}'; END $$; \
             CREATE OR REPLACE TRIGGER fail BEFORE INSERT OR UPDATE ON onceward.keys FOR EACH ROW EXECUTE FUNCTION fail()"
        ));
        let claimed = store.claim(&scope(), &terms(), &requests([2])).await.remove(0).unwrap_err();
        let done = store.complete(&scope(), &[completion(taken)]).await.remove(0).unwrap_err();
        for error in [claimed, done] {
            assert!(error.is_retryable(), "{code}: {error:?}");
            assert!(!format!("{error:?}").contains("at line"), "{error:?}");
        }
    }
    server.sql("DROP TRIGGER fail ON onceward.keys");
    let done = store.complete(&scope(), &[completion(taken)]).await.remove(0);
    assert!(matches!(done, Ok(Completion::Completed)), "{done:?}");
}
