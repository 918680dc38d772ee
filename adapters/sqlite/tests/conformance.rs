//! The conformance suites of stores, checkpoint stores, transactional stores and outboxes, on files of their own.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use async_trait::async_trait;
use onceward::store::TransactionalStore;
use onceward::testing::outbox::OutboxHarness;
use onceward::testing::store::{StoreHarness, Timing, TransactionalHarness};
use onceward::{Error, Outgoing};
use onceward_sqlite::{Clock, SqliteConfig, SqliteOutbox, SqliteStore};
use sqlx::{Connection, Row, SqliteConnection};

struct SqliteHarness {
    directory: tempfile::TempDir,
    clock: Clock,
}

impl SqliteHarness {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), clock: Clock::system() }
    }

    async fn with_effects() -> Self {
        let harness = Self::new();
        sqlx::query("CREATE TABLE effects (name TEXT NOT NULL)")
            .execute(&mut harness.connect().await)
            .await
            .unwrap();
        harness
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("onceward.db")
    }

    /// A connection of the application's own to a file with the schema.
    async fn application(&self) -> SqliteConnection {
        drop(self.store().await);
        self.connect().await
    }

    /// A connection of the application's own, beside the store's.
    async fn connect(&self) -> SqliteConnection {
        SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", self.path().display())).await.unwrap()
    }
}

#[async_trait]
impl StoreHarness for SqliteHarness {
    type Store = SqliteStore;

    /// Each handle has connections of its own, as another process would.
    async fn store(&self) -> SqliteStore {
        let mut config = SqliteConfig::new(self.path());
        config.busy_timeout = Duration::from_secs(60);
        SqliteStore::open_with_clock(config, self.clock.clone()).await.unwrap()
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn timing(&self) -> Timing {
        Timing::SHIFTED
    }
}

#[async_trait]
impl TransactionalHarness for SqliteHarness {
    async fn write_effect(&self, mut tx: <SqliteStore as TransactionalStore>::Tx<'_>, effect: &str) {
        sqlx::query("INSERT INTO effects (name) VALUES (?)").bind(effect).execute(&mut *tx).await.unwrap();
    }

    async fn effects(&self) -> Vec<String> {
        let rows =
            sqlx::query("SELECT name FROM effects").fetch_all(&mut self.connect().await).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[async_trait]
impl OutboxHarness for SqliteHarness {
    type Outbox = SqliteOutbox;

    async fn outbox(&self) -> SqliteOutbox {
        self.store().await.outbox()
    }

    async fn commit(&self, messages: &[Outgoing]) -> Result<(), Error> {
        let mut conn = self.application().await;
        let mut open = conn.begin_with("BEGIN IMMEDIATE").await.unwrap();
        self.outbox().await.put(&mut open, messages).await?;
        open.commit().await.unwrap();
        Ok(())
    }

    async fn roll_back(&self, messages: &[Outgoing]) {
        let mut conn = self.application().await;
        let mut open = conn.begin_with("BEGIN IMMEDIATE").await.unwrap();
        self.outbox().await.put(&mut open, messages).await.unwrap();
        open.rollback().await.unwrap();
    }
}

mod store {
    use super::SqliteHarness;
    onceward::store_conformance!(SqliteHarness::new());
}

mod checkpoints {
    use super::SqliteHarness;
    onceward::checkpoint_store_conformance!(SqliteHarness::new());
    onceward::audit_log_conformance!(SqliteHarness::new());
}

mod transactions {
    use super::SqliteHarness;
    onceward::transactional_store_conformance!(SqliteHarness::with_effects().await);
}

mod outbox {
    use super::SqliteHarness;
    onceward::outbox_conformance!(SqliteHarness::new());
}

mod shared_transactions {
    use super::SqliteHarness;
    onceward::shared_transaction_conformance!(SqliteHarness::with_effects().await);
}
