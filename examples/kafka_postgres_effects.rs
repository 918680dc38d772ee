//! Records of a Kafka topic, effects in Postgres: each transaction holds an effect, its key and the partition's position, so
//! that each record, and each order, has its effect exactly once, whatever is killed.
//!
//! ```sh
//! docker compose up --wait kafka postgres
//! cargo run -p onceward-examples --bin kafka_postgres_effects -- 127.0.0.1:9092 postgres://onceward:onceward@127.0.0.1/onceward
//! ```
//!
//! It prints
//!
//! ```text
//! records=2 copies=1
//! charges: 4711, 4712
//! ```

use std::sync::Arc;
use std::time::Duration;

use onceward::{Handled, KeyExtractor, KeySource, Message, ResultExt, Scope, tx_handler};
use onceward_kafka::KafkaConfig;
use onceward_kafka_transactions::{EffectKeys, EffectsConfig, KafkaEffects};
use onceward_postgres::{PgConfig, PgStore, PgTx, handler_error};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

type Error = Box<dyn std::error::Error>;

async fn charge(_app: (), message: Message, mut tx: PgTx<'_>) -> Handled {
    let order = std::str::from_utf8(message.payload()).permanent()?;
    let insert = sqlx::query("INSERT INTO charges (order_id) VALUES ($1)").bind(order);
    insert.execute(&mut *tx).await.map_err(handler_error)?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().unwrap_or("127.0.0.1:9092".into());
    let database = arguments.next().unwrap_or("postgres://onceward:onceward@127.0.0.1/onceward".into());
    produce_orders(&brokers).await?;
    let pool = PgPool::connect(&database).await?;
    sqlx::raw_sql("CREATE TABLE charges (order_id text NOT NULL)").execute(&pool).await?;

    let scope = Scope::parse("billing")?;
    let store = Arc::new(PgStore::open(PgConfig::new(&database)).await?);
    let mut config = EffectsConfig::new(KafkaConfig::new([brokers], ["orders"], "billing"));
    // Without keys the promise is for each record; with them it holds for each order, too.
    let keys = vec![KeySource::Header("idempotency-key".into())];
    config.keys = Some(EffectKeys::new(KeyExtractor::new(&scope, keys)));
    config.dead_letters = Some("orders.dead".into());

    let shutdown = CancellationToken::new();
    let handler = tx_handler(&*store, (), charge);
    let running = KafkaEffects::new(config)?.run(scope, Arc::clone(&store), handler, shutdown.clone());
    let running = tokio::spawn(running);
    // A service runs until its token is cancelled; this one stops when the last order has its effect.
    let last = "SELECT EXISTS (SELECT FROM charges WHERE order_id = '4712')";
    while !running.is_finished() && !sqlx::query_scalar::<_, bool>(last).fetch_one(&pool).await? {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.cancel();
    let summary = running.await??;

    println!("records={} copies={}", summary.records, summary.copies);
    let charges = sqlx::query_scalar::<_, String>("SELECT order_id FROM charges ORDER BY order_id");
    println!("charges: {}", charges.fetch_all(&pool).await?.join(", "));
    Ok(())
}

/// The producer: it sends 4711 twice, as records of their own.
async fn produce_orders(brokers: &str) -> Result<(), Error> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    let topics = ["orders", "orders.dead"].map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1)));
    client.create::<AdminClient<_>>()?.create_topics(&topics, &AdminOptions::new()).await?;
    let producer: FutureProducer = client.create()?;
    for order in ["4711", "4711", "4712"] {
        let headers = OwnedHeaders::new().insert(Header { key: "idempotency-key", value: Some(order) });
        let record = FutureRecord::<(), str>::to("orders").payload(order).headers(headers);
        producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error)?;
    }
    Ok(())
}
