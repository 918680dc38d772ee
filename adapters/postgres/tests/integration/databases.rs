//! Databases and roles with settings of their own: the store works, or reports what it cannot do.

use onceward::adapter::{Expiring, StoreAdmin};
use onceward::outbox::{Relay, RelayConfig};
use onceward::store::{Claim, Commit, Completion, FailRequest, Failure, TransactionalStore};
use onceward::testing::MemoryPublisher;
use onceward::{Outgoing, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use std::sync::Arc;
use std::time::Duration;

use crate::store::{completion, lease, requests, scope, terms};

/// A store in a database of its own.
async fn store_in(server: &Postgres, database: &str) -> PgStore {
    let mut config = PgConfig::new(url(server, database));
    // As the program has it: else the role's own limit holds for handlers.
    config.options.handler_statement_timeout = Some(Duration::from_secs(20));
    PgStore::open(config).await.unwrap()
}

fn url(server: &Postgres, database: &str) -> String {
    let url = server.url("postgres");
    format!("{}/{database}", url.rsplit_once('/').unwrap().0)
}

/// What every database must be good for.
async fn works(store: &PgStore, text: &str) {
    let claims = store.claim(&scope(), &terms(), &requests(0..3)).await;
    let leases: Vec<_> = claims.iter().map(|claim| lease(claim.as_ref().unwrap())).collect();
    // Known keys, under row locks.
    let again = store.claim(&scope(), &terms(), &requests(0..4)).await;
    assert!(matches!(again[0], Ok(Claim::InProgress { .. })), "{again:?}");
    let done = store.complete(&scope(), &[completion(leases[0])]).await.remove(0);
    assert!(matches!(done, Ok(Completion::Completed)), "{done:?}");
    let request = FailRequest { lease: leases[1], error: format!("failed: {text}"), terminal: None };
    let failed = store.fail(&scope(), &[request]).await.remove(0);
    assert!(matches!(failed, Ok(Failure::Recorded { .. })), "{failed:?}");
    let kept = store.inspect(&scope(), &leases[1].key).await.unwrap().unwrap().error.unwrap();
    assert!(kept.starts_with("failed: "), "{kept}");

    let mut open = store.begin().await.unwrap();
    let mut tx = store.lend(&mut open);
    let letter = Outgoing { destination: "there".into(), payload: "x".into(), ..Outgoing::default() };
    tx.outbox(letter).await.unwrap();
    assert_eq!(store.commit(open, &scope(), &completion(leases[2])).await.unwrap(), Commit::Committed);
    let (publisher, outbox) = (Arc::new(MemoryPublisher::new()), store.outbox());
    let relay = Relay::new(outbox, publisher.clone(), RelayConfig::default()).unwrap();
    relay.run_until_idle().await.unwrap();
    assert_eq!(publisher.sent().len(), 1);
    store.purge(100).await.unwrap();
    store.expiry_lag().await.unwrap();
}

/// What a handler says that speaks another language.
const FOREIGN: &str = "\u{44f}\u{2026} \u{1f642} \0";

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_other_encodings_keep_errors_as_they_can() {
    let server = Postgres::start();
    for (name, encoding, kept) in [
        ("latin", "LATIN1", "failed: ?? ? ?"),
        ("plain", "SQL_ASCII", ""),
        ("win", "WIN1252", "failed: ?? ? ?"),
    ] {
        server.sql(&format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ));
        let store = store_in(&server, name).await;
        works(&store, FOREIGN).await;
        let found = store
            .list(&scope(), &onceward::store::ListQuery { after: None, state: None, limit: 100 })
            .await
            .unwrap();
        let error = found.iter().find_map(|record| record.error.clone()).unwrap();
        assert!(kept.is_empty() || error == kept, "{encoding}: {error:?}");
        let advice = store.check().await.unwrap();
        let named = advice.iter().any(|advice| advice.text.contains(encoding));
        assert_eq!(named, !kept.is_empty(), "{encoding}: {advice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_settings_of_roles_and_databases_change_nothing() {
    let server = Postgres::start();
    for (n, setting) in [
        "standard_conforming_strings = off",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "search_path = shadow, pg_catalog",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '10s'",
        "idle_session_timeout = '10s'",
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "bytea_output = 'escape'",
        "row_security = off",
        "extra_float_digits = -15",
        "client_encoding = LATIN1",
        "synchronous_commit = off",
        "array_nulls = off",
        "xmlbinary = hex",
        "enable_indexscan = off",
        "plan_cache_mode = force_generic_plan",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("unusual_{n}");
        server.sql(&format!("CREATE DATABASE {name}"));
        let shadow = "CREATE SCHEMA shadow; CREATE FUNCTION shadow.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
                      $$ SELECT timestamptz \'1999-01-01\' $$; CREATE FUNCTION shadow.decode(text, text) RETURNS bytea \
                      LANGUAGE sql AS $$ SELECT \'\'::bytea $$";
        sqlx::Connection::close({
            let url = url(&server, &name);
            let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
            sqlx::raw_sql(shadow).execute(&mut conn).await.unwrap();
            conn
        })
        .await
        .unwrap();
        server.sql(&format!("ALTER DATABASE {name} SET {setting}"));
        let store = store_in(&server, &name).await;
        works(&store, "in plain words").await;
        let advice = store.check().await.unwrap();
        let wrong = advice.iter().find(|line| line.level == onceward::store::AdviceLevel::Error);
        assert!(wrong.is_none(), "{setting}: {wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_of_a_database_give_way_to_the_configured_ones() {
    let server = Postgres::start();
    server.sql("CREATE DATABASE limited");
    server.sql("ALTER DATABASE limited SET statement_timeout = '10s'");
    server.sql("ALTER DATABASE limited SET idle_in_transaction_session_timeout = '10s'");
    let store = store_in(&server, "limited").await;
    let mut open = store.begin().await.unwrap();
    let mut tx = store.lend(&mut open);
    for name in ["statement_timeout", "idle_in_transaction_session_timeout"] {
        let ask = sqlx::AssertSqlSafe(format!("SHOW {name}"));
        let limit: String = sqlx::query_scalar(ask).fetch_one(&mut *tx).await.unwrap();
        assert_eq!(limit, "20s", "{name}");
    }
    store.rollback(open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_by_default_is_refused_by_name() {
    let server = Postgres::start();
    server.sql("CREATE DATABASE readonly");
    let url = url(&server, "readonly");
    PgStore::migrate(&PgConfig::new(&url)).await.unwrap();
    server.sql("ALTER DATABASE readonly SET default_transaction_read_only = on");
    let store = store_in(&server, "readonly").await;
    let error = store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("default_transaction_read_only"), "{error}");
    let advice = store.check().await.unwrap();
    assert!(advice.iter().any(|line| line.text.contains("read-only")), "{advice:?}");
}
