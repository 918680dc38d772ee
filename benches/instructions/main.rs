//! Runs a part of the pipeline for `valgrind --tool=callgrind`, which counts its instructions: `scripts/instructions`.
//!
//! `instructions NAME MESSAGES` runs that many messages through the pipeline of `NAME`, over the memory broker and the memory store, on
//! one thread. What surrounds the run is outside of [`counted_pipeline`], the function whose instructions count.

use std::sync::Arc;

use onceward::pipeline::config::{OnExhausted, Ordering, Policies};
use onceward::testing::MemoryBroker;
use onceward::{
    Fingerprinting, Handled, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope, Summary,
    handler_fn,
};

/// The order keys that messages have, and how often a message is delivered in the part with copies.
const LANES: usize = 8;
const COPIES: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` names no part.
    let [name, messages] = &arguments[..] else { return };
    let messages: usize = messages.parse().expect("a number of messages");
    let (distinct, config) = part(name, messages).unwrap_or_else(|| panic!("no part {name}"));
    let broker = broker(messages, distinct);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let summary = counted_pipeline(&runtime, &broker, config);
    assert_eq!(summary.handled() as usize, distinct);
    assert_eq!((summary.handled() + summary.duplicates()) as usize, messages);
}

/// How many messages differ, and the configuration.
fn part(name: &str, messages: usize) -> Option<(usize, PipelineConfig)> {
    let plain = PipelineConfig::default;
    Some(match name {
        "distinct-keys" => (messages, plain()),
        "distinct-keys-without-fingerprints" => {
            (messages, PipelineConfig { fingerprint: Fingerprinting::Off, ..plain() })
        }
        "distinct-keys-in-order" => (messages, PipelineConfig { ordering: Ordering::BrokerKey, ..plain() }),
        "nine-of-ten-are-duplicates" => (messages / COPIES, plain()),
        _ => return None,
    })
}

fn broker(messages: usize, distinct: usize) -> MemoryBroker {
    let broker = MemoryBroker::finite();
    let payload = bytes::Bytes::from(vec![7; 256]);
    for number in 0..messages {
        let id = format!("id-{:020}", number % distinct);
        let order_key = format!("lane-{}", number % LANES);
        broker.publish(Message::builder(payload.clone()).message_id(id).order_key(order_key));
    }
    broker
}

async fn effect(_state: (), message: Message) -> Handled {
    std::hint::black_box(message.payload().len());
    Ok(())
}

/// `scripts/instructions` names it.
#[inline(never)]
fn counted_pipeline(
    runtime: &tokio::runtime::Runtime,
    broker: &MemoryBroker,
    config: PipelineConfig,
) -> Summary {
    let policies = Policies { on_exhausted: OnExhausted::Park, ..Policies::default() };
    let pipeline = Pipeline::builder(
        Scope::parse("bench").expect("a scope"),
        broker.consumer(),
        Arc::new(MemoryStore::new()),
    )
    .keys([KeySource::MessageId])
    .config(PipelineConfig { policies, ..config })
    .handler(handler_fn((), effect))
    .expect("a valid configuration");
    runtime.block_on(pipeline.run(Default::default())).expect("a run")
}
