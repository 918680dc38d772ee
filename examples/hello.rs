//! A complete pipeline in memory: five deliveries of three orders, and each order is charged once.
//!
//! ```sh
//! cargo run -p onceward-examples --bin hello
//! ```
//!
//! It prints
//!
//! ```text
//! charge 4711
//! charge 4712
//! charge 4713
//! received=5 handled=3 duplicates=2
//! ```

use std::sync::Arc;

use onceward::testing::{MemoryBroker, MemoryPublisher};
use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};

async fn charge(_app: (), message: Message) -> Handled {
    println!("charge {}", String::from_utf8_lossy(message.payload()));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), onceward::Error> {
    // In your program: a consumer of onceward-rabbitmq, -kafka, -sqs, -pubsub or -file.
    let broker = MemoryBroker::finite();
    for order in ["4711", "4712", "4711", "4713", "4712"] {
        broker.publish(Message::builder(order).header("idempotency-key", order));
    }
    // In your program: a store of onceward-redis, -postgres or -sqlite, and a publisher of the broker's crate.
    let store = Arc::new(MemoryStore::new());
    let letters = DeadLetters::new(Arc::new(MemoryPublisher::new()), "orders.dead");

    let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), store)
        .keys([KeySource::Header("idempotency-key".into())])
        .dead_letters(letters)
        .handler(handler_fn((), charge))?;
    // Cancel this token to drain and stop; this source ends by itself.
    let summary = pipeline.run(Default::default()).await?;

    let (received, handled) = (summary.received(), summary.handled());
    println!("received={received} handled={handled} duplicates={}", summary.duplicates());
    Ok(())
}
