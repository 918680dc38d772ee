//! The conformance suites of stores, checkpoint stores and transactional stores, on a real server and under a role that
//! has the documented rights and no more.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use onceward::store::TransactionalStore;
use onceward::testing::store::{StoreHarness, Timing, TransactionalHarness};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A schema of its own on the shared server, and a role of its own for the workers.
struct PgHarness {
    schema: String,
}

impl PgHarness {
    async fn new() -> Self {
        let server = Postgres::shared();
        let schema = format!("suite_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.schema = schema.clone();
        PgStore::migrate(&config).await.unwrap();
        let harness = Self { schema };
        let role = &harness.schema;
        let grants = PgStore::grants(&config.options, role).unwrap();
        let sql = format!(
            "CREATE ROLE {role} LOGIN; {grants} CREATE TABLE {role}.effects (name text NOT NULL); \
             GRANT SELECT, INSERT ON {role}.effects TO {role};"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut harness.connect().await).await.unwrap();
        harness
    }

    /// A connection of the application's own, beside the store's.
    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&Postgres::shared().url("postgres")).await.unwrap()
    }
}

#[async_trait]
impl StoreHarness for PgHarness {
    type Store = PgStore;

    async fn store(&self) -> PgStore {
        let url = Postgres::shared().url(&self.schema);
        let mut config = PgConfig::new(&url);
        config.options.schema = self.schema.clone();
        config.options.max_connections = 4;
        // The suite races many claims at once on a slow machine: a wait for a lock is no answer there.
        config.options.lock_timeout = Duration::from_secs(5);
        config.options.migrate = false;
        PgStore::open(config).await.unwrap()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    fn timing(&self) -> Timing {
        // Longer than `REAL`: a call under row locks is several round trips, and the machine may be busy.
        Timing {
            lease: Duration::from_millis(2_500),
            ttl: Duration::from_millis(7_000),
            tick: Duration::from_millis(450),
        }
    }
}

#[async_trait]
impl TransactionalHarness for PgHarness {
    async fn write_effect(&self, mut tx: <PgStore as TransactionalStore>::Tx<'_>, effect: &str) {
        let sql = format!("INSERT INTO {}.effects (name) VALUES ($1)", self.schema);
        sqlx::query(AssertSqlSafe(sql)).bind(effect).execute(&mut *tx).await.unwrap();
    }

    async fn effects(&self) -> Vec<String> {
        let sql = format!("SELECT name FROM {}.effects", self.schema);
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut self.connect().await).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

mod store {
    use super::PgHarness;
    onceward::store_conformance!(PgHarness::new().await);
}

mod checkpoints {
    use super::PgHarness;
    onceward::checkpoint_store_conformance!(PgHarness::new().await);
    onceward::audit_log_conformance!(PgHarness::new().await);
}

mod transactions {
    use super::PgHarness;
    onceward::transactional_store_conformance!(PgHarness::new().await);
}

mod marks {
    use super::PgHarness;
    onceward::position_store_conformance!(PgHarness::new().await);
}

mod shared_transactions {
    use super::PgHarness;
    onceward::shared_transaction_conformance!(PgHarness::new().await);
}
