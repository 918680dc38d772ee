//! The broker, a topic full of records, the raw loops, and the output of figures.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use onceward_kafka::KafkaConfig;
use onceward_test_servers::figures::{Figures, Series};
use onceward_test_servers::kafka::Kafka;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::mpsc;

pub(crate) const PARTITIONS: i32 = 8;
pub(crate) const PAYLOAD_BYTES: usize = 256;
const BATCH: usize = 500;
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A broker with a full topic `in` and an empty one `out`.
pub(crate) struct Stage {
    pub(crate) messages: usize,
    figures: Figures,
    bootstrap: String,
    _broker: Kafka,
}

/// Of the raw loops: as the adapter has it by default. A commit per 1,000 records would hold them to a tenth of their speed.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Joining takes seconds, for all of them: the clock runs from the first record on.
pub(crate) type First = Arc<OnceLock<Instant>>;

impl Stage {
    pub(crate) async fn set(figures: Figures) -> Self {
        let broker = Kafka::start();
        let (messages, bootstrap) = (figures.messages(300_000), broker.bootstrap());
        let stage = Self { messages, figures, bootstrap, _broker: broker };
        stage.create("in").await;
        stage.create("out").await;
        stage.fill();
        stage
    }

    pub(crate) fn source(&self, group: &str) -> KafkaConfig {
        KafkaConfig::new([&self.bootstrap], ["in"], group)
    }

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

    /// Polls all, one by one, and copies them to a topic if there is one.
    pub(crate) fn raw(&self, group: &str, to: Option<&str>) -> f64 {
        let producer = to.map(|_| self.producer());
        let started = self.poll(group, |payload| {
            if let (Some(to), Some(producer)) = (to, &producer) {
                send(producer, BaseRecord::<[u8], _>::to(to).payload(payload));
            }
        });
        if let Some(producer) = producer {
            producer.flush(LIMIT).unwrap();
        }
        per_second(self.messages, started)
    }

    /// Polls all on a thread, which hands copies of the payloads over to another in batches.
    pub(crate) async fn raw_batches(&self, group: &str) -> f64 {
        let (batches, mut received) = mpsc::channel::<Vec<Box<[u8]>>>(4);
        let taking = tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(batch) = received.recv().await {
                bytes += batch.iter().map(|payload| std::hint::black_box(payload).len()).sum::<usize>();
            }
            bytes
        });
        let started = tokio::task::block_in_place(|| {
            let mut batch = Vec::with_capacity(BATCH);
            let started = self.poll(group, |payload| {
                batch.push(payload.into());
                if batch.len() == BATCH {
                    batches.blocking_send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).unwrap();
                }
            });
            batches.blocking_send(batch).unwrap();
            started
        });
        drop(batches);
        assert_eq!(taking.await.unwrap(), self.messages * PAYLOAD_BYTES);
        per_second(self.messages, started)
    }

    /// Polls all, with an asynchronous commit as often as ours; when the first one came.
    fn poll(&self, group: &str, mut take: impl FnMut(&[u8])) -> Instant {
        let consumer: BaseConsumer = self.client(group).create().unwrap();
        consumer.subscribe(&["in"]).unwrap();
        let mut started = Instant::now();
        let (mut taken, joining) = (0, Instant::now());
        let mut committed = joining;
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
            let payload = std::hint::black_box(record.payload()).unwrap();
            assert_eq!(payload.len(), PAYLOAD_BYTES);
            take(payload);
            if taken % 1000 == 0 && committed.elapsed() >= COMMIT_INTERVAL {
                consumer.commit_consumer_state(CommitMode::Async).unwrap();
                committed = Instant::now();
            }
        }
        started
    }

    /// Prints what was measured in turns.
    pub(crate) fn report(&self, part: &str, base: Series<'_>, variants: &[Series<'_>]) {
        self.figures.report(part, self.messages, base, variants);
    }

    /// How many records the group has committed.
    pub(crate) fn committed(&self, group: &str) -> usize {
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

pub(crate) fn per_second(messages: usize, started: Instant) -> f64 {
    messages as f64 / started.elapsed().as_secs_f64()
}
