//! A store of one's own, and the suite that proves it. The decisions are `transition::Record`'s; a store only has to read
//! a record, apply a step to it and write it back, in one atomic step.
//!
//! ```sh
//! cargo run -p onceward-examples --bin custom_store     # a pipeline with this store
//! cargo test -p onceward-examples --bin custom_store    # the conformance suite
//! ```
//!
//! It prints
//!
//! ```text
//! charge 4711
//! handled=1 duplicates=1
//! ```

mod admin;
mod map_store;

use std::sync::Arc;

use map_store::MapStore;
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, Scope, handler_fn};

async fn charge(_app: (), message: Message) -> Handled {
    println!("charge {}", String::from_utf8_lossy(message.payload()));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), onceward::Error> {
    let broker = MemoryBroker::finite();
    for order in ["4711", "4711"] {
        broker.publish(Message::builder(order).message_id(order));
    }
    let store = Arc::new(MapStore::new());
    let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), store)
        .keys([KeySource::MessageId])
        .park_exhausted()
        .handler(handler_fn((), charge))?;
    let summary = pipeline.run(Default::default()).await?;
    println!("handled={} duplicates={}", summary.handled(), summary.duplicates());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onceward::testing::store::{StoreHarness, Timing};

    use super::MapStore;

    struct Harness(MapStore);

    impl Harness {
        fn new() -> Self {
            use tokio::runtime::{Handle, RuntimeFlavor};
            if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
                tokio::time::pause();
            }
            Self(MapStore::new())
        }
    }

    #[async_trait::async_trait]
    impl StoreHarness for Harness {
        type Store = MapStore;

        async fn store(&self) -> MapStore {
            self.0.clone()
        }

        async fn advance(&self, by: Duration) {
            tokio::time::advance(by).await;
        }

        fn timing(&self) -> Timing {
            Timing::VIRTUAL
        }
    }

    onceward::store_conformance!(Harness::new());
}
