//! Measures the cost of the pipeline per message over the memory broker and the memory store, on one core.
//!
//! `cargo bench --features testing --bench pipeline`. A sample runs 100,000 messages through; the item throughput is
//! messages per second, so 1 µs a message is 1 Mitem/s.

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use onceward::testing::MemoryBroker;
use onceward::{
    Fingerprint, Fingerprinting, Handled, KeyExtractor, KeySource, MemoryStore, Message, Pipeline,
    PipelineConfig, Scope, handler_fn,
    pipeline::config::{OnExhausted, Ordering, Policies},
};

const MESSAGES: usize = 100_000;
const LANES: usize = 8;

fn main() {
    divan::main();
}

fn scope() -> Scope {
    Scope::parse("bench").expect("a valid scope")
}

fn payload() -> bytes::Bytes {
    vec![7; 256].into()
}

fn broker(distinct: usize) -> MemoryBroker {
    let broker = MemoryBroker::finite();
    let payload = payload();
    for number in 0..MESSAGES {
        let id = format!("id-{:020}", number % distinct);
        let order_key = format!("lane-{}", number % LANES);
        broker.publish(Message::builder(payload.clone()).message_id(id).order_key(order_key));
    }
    broker
}

async fn effect(_state: (), message: Message) -> Handled {
    black_box(message.payload().len());
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn run(bencher: Bencher<'_, '_>, distinct: usize, fingerprint: bool) {
    let config = PipelineConfig {
        fingerprint: if fingerprint { Fingerprinting::Json } else { Fingerprinting::Off },
        ..PipelineConfig::default()
    };
    run_configured(bencher, distinct, config);
}

fn run_configured(bencher: Bencher<'_, '_>, distinct: usize, config: PipelineConfig) {
    let policies = Policies { on_exhausted: OnExhausted::Park, ..Policies::default() };
    let config = PipelineConfig { policies, ..config };
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .with_inputs(|| (broker(distinct), Arc::new(MemoryStore::new())))
        .bench_local_values(|(broker, store)| {
            let pipeline = Pipeline::builder(scope(), broker.consumer(), store)
                .keys([KeySource::MessageId])
                .config(config.clone())
                .handler(handler_fn((), effect))
                .expect("a valid configuration");
            let summary = runtime().block_on(pipeline.run(Default::default())).expect("a run");
            assert_eq!(summary.handled() as usize, distinct);
            assert_eq!((summary.handled() + summary.duplicates()) as usize, MESSAGES);
        });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn distinct_keys(bencher: Bencher<'_, '_>) {
    run(bencher, MESSAGES, true);
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn distinct_keys_without_fingerprints(bencher: Bencher<'_, '_>) {
    run(bencher, MESSAGES, false);
}

/// To be compared with [`distinct_keys`]: the cost of the order of [`LANES`] keys.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn distinct_keys_in_order(bencher: Bencher<'_, '_>) {
    let config = PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
    run_configured(bencher, MESSAGES, config);
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn nine_of_ten_are_duplicates(bencher: Bencher<'_, '_>) {
    run(bencher, MESSAGES / 10, true);
}

/// The cost of the broker and an empty loop without a pipeline: to be subtracted by the reader, not in the output.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn broker_alone(bencher: Bencher<'_, '_>) {
    use onceward::adapter::{Consumer, Settlement};
    bencher.counter(ItemsCount::new(MESSAGES)).with_inputs(|| broker(MESSAGES)).bench_local_values(
        |broker| {
            runtime().block_on(async {
                let mut consumer = broker.consumer();
                let acker = consumer.acker();
                while let Some(batch) = consumer.receive().await.expect("a batch") {
                    let mut settlements = Vec::with_capacity(batch.len());
                    for delivery in batch {
                        black_box(delivery.message.payload().len());
                        settlements.push((delivery.tag, Settlement::Ack));
                    }
                    acker.settle(&settlements).await;
                }
            });
        },
    );
}

#[divan::bench]
fn key_of_a_message_id(bencher: Bencher<'_, '_>) {
    let keys = KeyExtractor::new(&scope(), vec![KeySource::MessageId]);
    let message = Message::builder(payload()).message_id("id-00000000000000000042").build();
    bencher.bench_local(|| keys.key_of(black_box(&message)));
}

#[divan::bench]
fn fingerprint_of_256_bytes(bencher: Bencher<'_, '_>) {
    let payload = payload();
    bencher.bench_local(|| Fingerprint::of(black_box(&payload)));
}

/// A JSON object of 256 bytes, by what it means.
#[divan::bench]
fn fingerprint_of_256_bytes_of_json(bencher: Bencher<'_, '_>) {
    let start =
        r#"{"order":4711,"customer":"c-0815","lines":[{"sku":"a","n":2},{"sku":"b","n":1.50}],"note":""#;
    let payload = format!("{start}{}\"}}", "x".repeat(254 - start.len()));
    assert_eq!(payload.len(), 256);
    bencher.bench_local(|| Fingerprint::of_json(black_box(payload.as_bytes())));
}
