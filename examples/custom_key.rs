//! A key made of two parts: orders are numbered by each tenant, so only tenant and number together name an order.
//!
//! ```sh
//! cargo run -p onceward-examples --bin custom_key
//! ```
//!
//! It prints
//!
//! ```text
//! charge acme {"order":{"id":1}}
//! charge bolt {"order":{"id":1}}
//! handled=2 duplicates=1 dead-lettered=1
//! letter: missing-key
//! ```

use std::sync::Arc;

use onceward::testing::{MemoryBroker, MemoryPublisher};
use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};

async fn charge(_app: (), message: Message) -> Handled {
    let tenant = message.header("tenant").cloned().unwrap_or_default();
    let order = String::from_utf8_lossy(message.payload());
    println!("charge {} {order}", String::from_utf8_lossy(&tenant));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), onceward::Error> {
    let broker = MemoryBroker::finite();
    for tenant in ["acme", "bolt", "acme"] {
        broker.publish(Message::builder(r#"{"order":{"id":1}}"#).header("tenant", tenant));
    }
    // Without a tenant the composite is missing: no guess is made, the message goes to the dead letters.
    broker.publish(Message::builder(r#"{"order":{"id":2}}"#));

    let letters = MemoryPublisher::new();
    let tenant_and_order = KeySource::Composite(vec![
        KeySource::Header("tenant".into()),
        KeySource::JsonPointer("/order/id".into()),
    ]);
    let store = Arc::new(MemoryStore::new());
    let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), store)
        .keys([tenant_and_order])
        .dead_letters(DeadLetters::new(Arc::new(letters.clone()), "orders.dead"))
        .handler(handler_fn((), charge))?;
    let summary = pipeline.run(Default::default()).await?;

    let (handled, duplicates, dead) = (summary.handled(), summary.duplicates(), summary.dead_lettered());
    println!("handled={handled} duplicates={duplicates} dead-lettered={dead}");
    for letter in letters.sent() {
        let reason = letter.headers.iter().find(|(name, _)| name == "onceward-reason");
        println!(
            "letter: {}",
            String::from_utf8_lossy(&reason.map(|(_, text)| text.clone()).unwrap_or_default())
        );
    }
    Ok(())
}
