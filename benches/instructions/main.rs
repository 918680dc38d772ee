//! Runs a part of the pipeline for `valgrind --tool=callgrind`, which counts its instructions: `scripts/instructions`.
//!
//! `instructions NAME MESSAGES` runs that many messages through the pipeline of `NAME`, over the memory broker and the memory store, on
//! one thread. What surrounds the run is outside of [`counted_pipeline`], the function whose instructions count.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use onceward::pipeline::config::{OnExhausted, Ordering, Policies};
use onceward::telemetry::{Counter, Distribution, Measure, Observer};
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
    let observer = (name == WITH_HISTOGRAMS).then(|| Arc::new(Histograms::default()) as Arc<dyn Observer>);
    let summary = counted_pipeline(&runtime, &broker, config, observer);
    assert_eq!(summary.handled() as usize, distinct);
    assert_eq!((summary.handled() + summary.duplicates()) as usize, messages);
}

/// The part whose pipeline has an observer, as the program has one.
const WITH_HISTOGRAMS: &str = "distinct-keys-with-histograms";

struct Histograms {
    distributions: Vec<Distribution>,
    ended: AtomicU64,
}

impl Default for Histograms {
    fn default() -> Self {
        let distributions = Measure::ALL.iter().map(|measure| Distribution::new(*measure)).collect();
        Self { distributions, ended: AtomicU64::new(0) }
    }
}

impl Observer for Histograms {
    fn observe(&self, measure: Measure, values: &[f64]) {
        self.distributions[measure as usize].add(values);
    }

    fn observe_counted(&self, measure: Measure, values: &[(f64, u64)]) {
        self.distributions[measure as usize].add_counted(values);
    }

    fn ended(&self, _origin: Option<&str>, _outcome: Counter, count: u64) {
        self.ended.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How many messages differ, and the configuration.
fn part(name: &str, messages: usize) -> Option<(usize, PipelineConfig)> {
    let plain = PipelineConfig::default;
    Some(match name {
        "distinct-keys" => (messages, plain()),
        WITH_HISTOGRAMS => (messages, plain()),
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
    observer: Option<Arc<dyn Observer>>,
) -> Summary {
    let policies = Policies { on_exhausted: OnExhausted::Park, ..Policies::default() };
    let mut pipeline = Pipeline::builder(
        Scope::parse("bench").expect("a scope"),
        broker.consumer(),
        Arc::new(MemoryStore::new()),
    )
    .keys([KeySource::MessageId])
    .config(PipelineConfig { policies, ..config });
    if let Some(observer) = observer {
        pipeline = pipeline.observer(observer);
    }
    let pipeline = pipeline.handler(handler_fn((), effect)).expect("a valid configuration");
    runtime.block_on(pipeline.run(Default::default())).expect("a run")
}
