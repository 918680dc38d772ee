//! On the same broker, in turns: a raw loop (poll, an asynchronous commit per 1,000) against the pipeline with the memory store;
//! and a raw loop that copies records to another topic against a transform that does it in transactions. What counts is the
//! ratio.
//!
//! ```sh
//! cargo bench -p onceward-kafka --bench throughput -- [messages [rounds]]
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use onceward::pipeline::config::Ordering;
use onceward::{
    Handled, KeySource, MemoryStore, Message, Outgoing, Pipeline, PipelineConfig, Scope, handler_fn,
};
use onceward_kafka::{KafkaConfig, KafkaConsumer, KafkaTransform, TransformConfig};
use onceward_test_servers::kafka::Kafka;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 8;
const PAYLOAD_BYTES: usize = 256;
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // `cargo bench` adds `--bench`.
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (messages, rounds) = (numbers.next().unwrap_or(300_000), numbers.next().unwrap_or(3));
    let broker = Kafka::start();
    let bench = Bench { bootstrap: broker.bootstrap(), messages };
    bench.create("in").await;
    bench.create("out").await;
    bench.fill();
    let [mut raws, mut pipelines, mut copies, mut transforms] = [const { Vec::new() }; 4];
    for round in 0..rounds {
        raws.push(bench.raw(&format!("raw-{round}"), None));
        pipelines.push(bench.pipeline(&format!("pipeline-{round}")).await);
        copies.push(bench.raw(&format!("copy-{round}"), Some("out")));
        transforms.push(bench.transform(&format!("transform-{round}")).await);
    }
    for (what, plain, ours) in [("pipeline", raws, pipelines), ("transform, 100 ms", copies, transforms)] {
        println!("{what}: raw {plain:?}, ours {ours:?} messages/s");
        let (plain, ours) = (median(plain), median(ours));
        println!("{what}: raw {plain}, ours {ours}, ratio {:.2}", ours as f64 / plain as f64);
    }
}

struct Bench {
    bootstrap: String,
    messages: usize,
}

/// Joining takes seconds, for all of them: the clock runs from the first record on.
type First = Arc<OnceLock<Instant>>;

impl Bench {
    fn client(&self, group: &str) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("fetch.queue.backoff.ms", "10");
        client
    }

    async fn create(&self, name: &str) {
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap();
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    }

    fn producer(&self) -> ThreadedProducer<DefaultProducerContext> {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.bootstrap).set("enable.idempotence", "true");
        client.create().unwrap()
    }

    /// Each message with a key and an id of its own.
    fn fill(&self) {
        let producer = self.producer();
        let payload = [b'x'; PAYLOAD_BYTES];
        for number in 0..self.messages {
            let id = number.to_string();
            let headers = OwnedHeaders::new().insert(Header { key: "message-id", value: Some(&id) });
            send(&producer, BaseRecord::to("in").key(&id).payload(&payload[..]).headers(headers));
        }
        producer.flush(LIMIT).unwrap();
    }

    /// Polls all, and copies them to a topic if there is one.
    fn raw(&self, group: &str, to: Option<&str>) -> u64 {
        let consumer: BaseConsumer = self.client(group).create().unwrap();
        let producer = self.producer();
        consumer.subscribe(&["in"]).unwrap();
        let mut started = Instant::now();
        let (mut taken, joining) = (0, Instant::now());
        while taken < self.messages {
            // A rebalance ends the wait as well.
            let Some(record) = consumer.poll(LIMIT) else {
                assert!(joining.elapsed() < LIMIT, "nothing more after {taken}");
                continue;
            };
            let record = record.unwrap();
            taken += 1;
            if taken == 1 {
                started = Instant::now();
            }
            assert_eq!(std::hint::black_box(record.payload()).unwrap().len(), PAYLOAD_BYTES);
            if let Some(to) = to {
                send(&producer, BaseRecord::<[u8], _>::to(to).payload(record.payload().unwrap()));
            }
            if taken % 1000 == 0 {
                consumer.commit_consumer_state(CommitMode::Async).unwrap();
            }
        }
        producer.flush(LIMIT).unwrap();
        per_second(self.messages, started)
    }

    async fn pipeline(&self, group: &str) -> u64 {
        async fn handle(first: First, message: Message) -> Handled {
            first.get_or_init(Instant::now);
            assert_eq!(std::hint::black_box(message.payload()).len(), PAYLOAD_BYTES);
            Ok(())
        }
        let source = KafkaConfig::new([&self.bootstrap], ["in"], group);
        let consumer = KafkaConsumer::open(source).await.unwrap();
        let first = First::default();
        let config =
            PipelineConfig { concurrency: 512, ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
        let pipeline =
            Pipeline::builder(Scope::parse("bench").unwrap(), consumer, Arc::new(MemoryStore::new()))
                .keys([KeySource::MessageId])
                .config(config)
                .park_exhausted()
                .handler(handler_fn(Arc::clone(&first), handle))
                .unwrap();
        let counters = pipeline.counters();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(pipeline.run(shutdown.clone()));
        while counters.get(onceward::telemetry::Counter::Handled) < self.messages as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let rate = per_second(self.messages, *first.get().unwrap());
        shutdown.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(self.committed(group), self.messages, "not everything was committed");
        rate
    }

    async fn transform(&self, group: &str) -> u64 {
        let source = KafkaConfig::new([&self.bootstrap], ["in"], group);
        let mut config = TransformConfig::new(source, group);
        config.batch_records = 100_000;
        let first = First::default();
        let noted = Arc::clone(&first);
        let copy = move |message: Message| {
            noted.get_or_init(Instant::now);
            let (destination, payload) = ("out".to_owned(), message.payload().clone());
            async move { Ok(vec![Outgoing { destination, payload, ..Outgoing::default() }]) }
        };
        let shutdown = CancellationToken::new();
        let transform = KafkaTransform::new(config).unwrap();
        let running = tokio::spawn(transform.run(copy, shutdown.clone()));
        while self.committed(group) < self.messages {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let rate = per_second(self.messages, *first.get().unwrap());
        shutdown.cancel();
        running.await.unwrap().unwrap();
        rate
    }

    fn committed(&self, group: &str) -> usize {
        let asked: BaseConsumer = self.client(group).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range("in", 0, PARTITIONS - 1);
        let committed = asked.committed_offsets(list, LIMIT).unwrap();
        let of = |offset| match offset {
            Offset::Offset(offset) => usize::try_from(offset).unwrap(),
            _ => 0,
        };
        committed.elements().iter().map(|own| of(own.offset())).sum()
    }
}

fn send<K: ToBytes + ?Sized>(
    producer: &ThreadedProducer<DefaultProducerContext>,
    mut record: BaseRecord<'_, K, [u8]>,
) {
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                record = again;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}

fn per_second(messages: usize, started: Instant) -> u64 {
    (messages as f64 / started.elapsed().as_secs_f64()) as u64
}

fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers[numbers.len() / 2]
}
