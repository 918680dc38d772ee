//! Messages from an SQS queue, effects in Postgres: effect and completion commit in one transaction, so that each order is
//! charged exactly once, whatever is killed.
//!
//! ```sh
//! docker compose up --wait sqs postgres
//! export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x
//! cargo run -p onceward-examples --bin sqs_postgres -- http://127.0.0.1:9324 postgres://onceward:onceward@127.0.0.1/onceward
//! ```
//!
//! It prints
//!
//! ```text
//! received=3 handled=2 duplicates=1
//! charges: 4711, 4712
//! ```

use std::sync::Arc;

use onceward::{Handled, KeySource, Message, Pipeline, PipelineConfig, ResultExt, Scope, tx_handler};
use onceward_postgres::{PgConfig, PgStore, PgTx, handler_error};
use onceward_sqs::{SqsConfig, SqsConsumer, SqsEndpoint};
use sqlx::PgPool;

type Error = Box<dyn std::error::Error>;

/// Runs in the transaction that records the completion. What it does outside `tx` is not covered by it.
async fn charge(_app: (), message: Message, mut tx: PgTx<'_>) -> Handled {
    let order = std::str::from_utf8(message.payload()).permanent()?;
    let insert = sqlx::query("INSERT INTO charges (order_id) VALUES ($1)").bind(order);
    insert.execute(&mut *tx).await.map_err(handler_error)?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mut sqs = SqsEndpoint::default();
    sqs.url = Some(arguments.next().unwrap_or("http://127.0.0.1:9324".into()));
    sqs.region = Some("eu-west-1".into());
    let database = arguments.next().unwrap_or("postgres://onceward:onceward@127.0.0.1/onceward".into());
    let queue = send_orders(&sqs).await?;
    let pool = PgPool::connect(&database).await?;
    sqlx::raw_sql("CREATE TABLE charges (order_id text NOT NULL)").execute(&pool).await?;

    let store = Arc::new(PgStore::open(PgConfig::new(&database)).await?);
    let mut config = SqsConfig::new(&queue);
    config.endpoint = sqs;
    config.queue.wait = std::time::Duration::from_secs(1);
    let orders = SqsConsumer::open(config).await?;
    let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, Arc::clone(&store))
        .keys([KeySource::Header("idempotency-key".into())])
        .park_exhausted()
        .config(PipelineConfig { until_idle: true, ..PipelineConfig::default() })
        .transactional_handler(tx_handler(&*store, (), charge))?;
    let summary = pipeline.run(Default::default()).await?;

    let (received, handled) = (summary.received(), summary.handled());
    println!("received={received} handled={handled} duplicates={}", summary.duplicates());
    let charges = sqlx::query_scalar::<_, String>("SELECT order_id FROM charges ORDER BY order_id");
    println!("charges: {}", charges.fetch_all(&pool).await?.join(", "));
    Ok(())
}

/// The producer: it sends 4711 twice. The answer is the URL of its queue.
async fn send_orders(endpoint: &SqsEndpoint) -> Result<String, Error> {
    let client = endpoint.client().await;
    let created = client.create_queue().queue_name("orders").send().await?;
    let queue = created.queue_url().ok_or("the queue has no URL")?;
    for order in ["4711", "4711", "4712"] {
        let key = aws_sdk_sqs::types::MessageAttributeValue::builder();
        let key = key.data_type("String").string_value(order).build()?;
        let send = client.send_message().queue_url(queue).message_body(order);
        send.message_attributes("idempotency-key", key).send().await?;
    }
    Ok(queue.to_owned())
}
