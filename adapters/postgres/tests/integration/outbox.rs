//! The outbox on a real server, under a role with no more than the documented rights: the conformance suite, and
//! transactions that write one order key at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::outbox::{Relay, RelayConfig};
use onceward::testing::MemoryPublisher;
use onceward::testing::outbox::OutboxHarness;
use onceward::{Error, Outgoing};
use onceward_postgres::{PgConfig, PgOutbox, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const PATIENCE: Duration = Duration::from_secs(60);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A schema of its own on the shared server, and a role of its own.
struct Place {
    schema: String,
    server: &'static Postgres,
}

impl Place {
    async fn new() -> Self {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let schema = format!("outbox_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.schema = schema.clone();
        PgStore::migrate(&config).await.unwrap();
        let grants = PgStore::grants(&config.options, &schema).unwrap();
        let mut owner = PgConnection::connect(&server.url("postgres")).await.unwrap();
        let sql = format!("CREATE ROLE {schema} LOGIN; {grants}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut owner).await.unwrap();
        Self { schema, server }
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.server.url(&self.schema)).await.unwrap()
    }

    /// Writes messages in one transaction, and commits it.
    async fn put(&self, outbox: &PgOutbox, messages: &[Outgoing]) -> Result<(), Error> {
        let mut conn = self.connect().await;
        let mut open = conn.begin().await.unwrap();
        outbox.put(&mut open, messages).await?;
        open.commit().await.unwrap();
        Ok(())
    }
}

#[async_trait]
impl OutboxHarness for Place {
    type Outbox = PgOutbox;

    async fn outbox(&self) -> PgOutbox {
        let mut config = PgConfig::new(self.server.url(&self.schema));
        config.options.schema = self.schema.clone();
        config.options.migrate = false;
        PgStore::open(config).await.unwrap().outbox()
    }

    async fn commit(&self, messages: &[Outgoing]) -> Result<(), Error> {
        self.put(&self.outbox().await, messages).await
    }

    async fn roll_back(&self, messages: &[Outgoing]) {
        let mut conn = self.connect().await;
        let mut open = conn.begin().await.unwrap();
        self.outbox().await.put(&mut open, messages).await.unwrap();
        open.rollback().await.unwrap();
    }
}

mod conformance {
    use super::Place;
    onceward::outbox_conformance!(Place::new().await);
}

fn message(number: u32) -> Outgoing {
    Outgoing {
        destination: "there".into(),
        order_key: Some("account".into()),
        payload: number.to_string().into(),
        ..Outgoing::default()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_commits_later_does_not_come_before_what_has_been_sent() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    let broker = MemoryPublisher::new();
    let relay = Relay::new(outbox.clone(), Arc::new(broker.clone()), RelayConfig::default()).unwrap();
    // The first time for the order key, and again.
    for earlier in [1, 3] {
        let mut conn = place.connect().await;
        let mut first = conn.begin().await.unwrap();
        outbox.put(&mut first, &[message(earlier)]).await.unwrap();
        let second = tokio::spawn({
            let (place, outbox) =
                (Place { schema: place.schema.clone(), server: place.server }, outbox.clone());
            async move { place.put(&outbox, &[message(earlier + 1)]).await }
        });
        // It waits for the first one's end, or is done without having waited.
        let waits = format!(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE NOT l.granted AND a.usename = '{}'",
            place.schema
        );
        until("the second one", || second.is_finished() || place.server.sql(&waits) == "1").await;
        relay.run_until_idle().await.unwrap();
        first.commit().await.unwrap();
        second.await.unwrap().unwrap();
        relay.run_until_idle().await.unwrap();
    }
    assert_eq!(
        broker.sent().iter().map(|sent| &sent.payload[..]).collect::<Vec<_>>(),
        [b"1", b"2", b"3", b"4"]
    );
}
