//! An event that leaves exactly with its effect: the handler's transaction writes both, and a relay publishes the event to
//! RabbitMQ afterwards.
//!
//! ```sh
//! docker compose up --wait rabbitmq postgres
//! cargo run -p onceward-examples --bin outbox -- amqp://guest:guest@127.0.0.1:5672/%2f postgres://onceward:onceward@127.0.0.1/onceward
//! ```
//!
//! It prints
//!
//! ```text
//! handled=2 duplicates=1
//! event: charged 4711
//! event: charged 4712
//! ```

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::{Connection, ConnectionProperties};
use onceward::outbox::{OutboxStore, Relay, RelayConfig};
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Outgoing, Pipeline, ResultExt, Scope, tx_handler};
use onceward_postgres::{PgConfig, PgStore, PgTx, handler_error};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher};
use tokio_util::sync::CancellationToken;

async fn charge(_app: (), message: Message, mut tx: PgTx<'_>) -> Handled {
    let order = std::str::from_utf8(message.payload()).permanent()?;
    let insert = sqlx::query("INSERT INTO charges (order_id) VALUES ($1)").bind(order);
    insert.execute(&mut *tx).await.map_err(handler_error)?;
    let payload = format!("charged {order}").into();
    // Events with one order key are published in the order of their commits.
    let order_key = Some("customer 7".into());
    tx.outbox(Outgoing { destination: "charged".into(), order_key, payload, ..Outgoing::default() }).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let amqp = arguments.next().unwrap_or("amqp://guest:guest@127.0.0.1:5672/%2f".into());
    let database = arguments.next().unwrap_or("postgres://onceward:onceward@127.0.0.1/onceward".into());
    let connection = Connection::connect(&amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("charged".into(), durable, Default::default()).await?;
    let pool = sqlx::PgPool::connect(&database).await?;
    sqlx::raw_sql("CREATE TABLE charges (order_id text NOT NULL)").execute(&pool).await?;

    let broker = MemoryBroker::finite();
    for order in ["4711", "4712", "4711"] {
        broker.publish(Message::builder(order).message_id(order));
    }
    let store = Arc::new(PgStore::open(PgConfig::new(&database)).await?);
    let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), Arc::clone(&store))
        .keys([KeySource::MessageId])
        .park_exhausted()
        .transactional_handler(tx_handler(&*store, (), charge))?;
    let summary = pipeline.run(Default::default()).await?;
    println!("handled={} duplicates={}", summary.handled(), summary.duplicates());

    // In another process, if you like: `onceward outbox relay FILE` does the same.
    let publisher = Arc::new(RabbitmqPublisher::open(RabbitmqEndpoint::new(&amqp)).await?);
    let relay = Relay::new(store.outbox(), publisher, RelayConfig::default())?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let running = tokio::spawn(async move { relay.run(stop).await });
    while !running.is_finished() && store.outbox().status().await?.waiting > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.cancel();
    running.await??;

    while let Some(event) = channel.basic_get("charged".into(), BasicGetOptions { no_ack: true }).await? {
        println!("event: {}", String::from_utf8_lossy(&event.data));
    }
    Ok(())
}
