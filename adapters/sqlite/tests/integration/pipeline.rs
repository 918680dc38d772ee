//! A transactional pipeline on one file: many handlers, one writer.

use std::sync::Arc;
use std::time::Duration;

use onceward::telemetry::Counter;
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, PipelineConfig, Scope, tx_handler};
use onceward_sqlite::{SqliteConfig, SqliteStore, SqliteTx};
use sqlx::{Connection, Executor, Row, SqliteConnection};
use tokio_util::sync::CancellationToken;

async fn slow(_: (), message: Message, mut tx: SqliteTx<'_>) -> Handled {
    sqlx::query("INSERT INTO effects VALUES (?)").bind(&message.payload()[..]).execute(&mut *tx).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_the_only_writer_is_no_trouble_of_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("onceward.db");
    let store = Arc::new(SqliteStore::open(SqliteConfig::new(&path)).await.unwrap());
    let mut conn = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    conn.execute("CREATE TABLE effects (a BLOB)").await.unwrap();
    let broker = MemoryBroker::finite();
    for number in 0..120 {
        broker.publish(Message::builder(number.to_string()).message_id(number.to_string()));
    }
    // 12 s of transactions, one after the other; a call of the store may take 5 s.
    let config = PipelineConfig {
        concurrency: 120,
        store_timeout: Duration::from_secs(5),
        ..PipelineConfig::default()
    };
    let pipeline = Pipeline::builder(Scope::parse("billing").unwrap(), broker.consumer(), Arc::clone(&store))
        .config(config)
        .keys([KeySource::MessageId])
        .park_exhausted()
        .transactional_handler(tx_handler(&*store, (), slow))
        .unwrap();
    let counters = pipeline.counters();
    let summary = pipeline.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.handled(), counters.get(Counter::StoreErrors)), (120, 0));
    let row = sqlx::query("SELECT count(*) FROM effects").fetch_one(&mut conn).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 120);
}
