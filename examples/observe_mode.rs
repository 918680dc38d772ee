//! A first look at a stream: in observe mode nothing is suppressed, and what a key would suppress is counted.
//!
//! ```sh
//! cargo run -p onceward-examples --bin observe_mode
//! ```
//!
//! It prints
//!
//! ```text
//! charge 4711
//! charge 4711
//! charge 4712
//! handled=3 observed-duplicates=1
//! ```

use std::sync::Arc;

use onceward::pipeline::config::Mode;
use onceward::telemetry::Counter;
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope, handler_fn};

async fn charge(_app: (), message: Message) -> Handled {
    println!("charge {}", String::from_utf8_lossy(message.payload()));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), onceward::Error> {
    let broker = MemoryBroker::finite();
    for order in ["4711", "4712", "4711"] {
        broker.publish(Message::builder(order).header("idempotency-key", order));
    }
    let store = Arc::new(MemoryStore::new());
    let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), store)
        .keys([KeySource::Header("idempotency-key".into())])
        .config(PipelineConfig { mode: Mode::Observe, ..PipelineConfig::default() })
        .park_exhausted()
        .handler(handler_fn((), charge))?;
    let summary = pipeline.run(Default::default()).await?;

    let observed = summary.counters().get(Counter::ObservedDuplicates);
    println!("handled={} observed-duplicates={observed}", summary.handled());
    Ok(())
}
