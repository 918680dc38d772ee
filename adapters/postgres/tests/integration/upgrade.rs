//! A schema as the release before left it, with what is in it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use onceward::Store;
use onceward::adapter::Expiring;
use onceward::adapter::KEY_FORMAT;
use onceward::outbox::{Relay, RelayConfig};
use onceward::testing::MemoryPublisher;
use onceward_migrations::POSTGRES;
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;

use crate::store::{lease, requests, scope, terms};

/// The last step of the release before.
const BEFORE: u32 = 6;

/// What that release executed.
fn made_before() -> String {
    let mut sql = "CREATE SCHEMA IF NOT EXISTS onceward; CREATE TABLE onceward.migrations (version integer NOT NULL PRIMARY KEY, \
        name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());"
        .to_owned();
    for step in POSTGRES.iter().filter(|step| step.version <= BEFORE) {
        sql.push_str(&step.sql.replace("@schema@", "onceward"));
        write!(sql, "INSERT INTO onceward.migrations VALUES ({}, '{}');", step.version, step.name).unwrap();
    }
    write!(
        sql,
        "INSERT INTO onceward.meta VALUES ('format', 1), ('key_format', {KEY_FORMAT}), ('fence_floor', 0), ('needs', 1);"
    )
    .unwrap();
    sql
}

const WRITE: &str = "INSERT INTO onceward.outbox (destination, order_key, payload) VALUES ('there', 'k', ";

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_the_release_before_is_brought_up_to_date_with_what_is_in_it() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    server.sql(&made_before());
    server.sql(&format!("{WRITE} '1'), ('there', 'k', '2')"));
    let config = PgConfig::new(server.url("postgres"));
    let missing = PgStore::missing_migrations(&config).await.unwrap();
    assert_eq!(missing, onceward_migrations::latest(POSTGRES) - BEFORE);
    assert_eq!(PgStore::migrate(&config).await.unwrap(), missing);
    // A role with the rights that the release before listed, which are the same.
    let grants = PgStore::grants(&config.options, "worker").unwrap();
    server.sql(&format!("CREATE ROLE worker LOGIN; {grants}"));
    let mut worker = PgConfig::new(server.url("worker"));
    worker.options.migrate = false;
    let store = PgStore::open(worker).await.unwrap();
    server.sql(&format!("SET ROLE worker; {WRITE} '3')"));
    let broker = MemoryPublisher::new();
    let relay = Relay::new(store.outbox(), Arc::new(broker.clone()), RelayConfig::default()).unwrap();
    relay.run_until_idle().await.unwrap();
    assert_eq!(broker.sent().iter().map(|sent| &sent.payload[..]).collect::<Vec<_>>(), [b"1", b"2", b"3"]);
    let _ = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    server.sql("UPDATE onceward.keys SET expires_at = 1, lease_until = 0, written_at = 1, fence = 1");
    assert!(store.expiry_lag().await.unwrap() > Duration::ZERO);
    assert_eq!(store.purge(10).await.unwrap(), 1);
}
