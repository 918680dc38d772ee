//! A topic of the broker that the tests of this process share, the group that reads it, and its producers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use onceward::{Outgoing, Publisher};
use onceward_kafka::{KafkaConnection, KafkaPublisher};
use onceward_test_servers::kafka::Kafka;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::pair::Waiting;
use crate::stage::PATIENCE;

/// A topic of its own for one test, and a group of its name.
pub(crate) struct Topic<'a> {
    pub(crate) broker: &'a Kafka,
    pub(crate) name: String,
    group: String,
    partitions: i32,
    /// `max.message.bytes`, if it is not the broker's default.
    record_limit: Option<u32>,
}

/// A record of a topic.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) payload: Vec<u8>,
    pub(super) headers: BTreeMap<String, String>,
    /// Partition and offset.
    pub(super) place: (i32, i64),
}

impl Topic<'static> {
    /// On the broker that the tests share.
    pub(crate) fn create(name: &str, partitions: i32) -> Self {
        Self::create_on(Kafka::shared(), name, partitions)
    }
}

impl<'a> Topic<'a> {
    /// As [`create`](Topic::create), on another broker.
    pub(crate) fn create_on(broker: &'a Kafka, name: &str, partitions: i32) -> Self {
        let topic = Self::named(broker, name, partitions);
        topic.create_again();
        topic
    }

    /// Creates it, with records of at most `bytes`.
    pub(crate) fn create_with_record_limit(
        broker: &'a Kafka,
        name: &str,
        partitions: i32,
        bytes: u32,
    ) -> Self {
        let topic = Self { record_limit: Some(bytes), ..Self::named(broker, name, partitions) };
        topic.create_again();
        topic
    }

    /// Creates it after [`delete`](Self::delete), under its name.
    pub(crate) fn create_again(&self) {
        let admin: AdminClient<_> = self.client().create().expect("a client");
        let limit = self.record_limit.map(|bytes| bytes.to_string());
        // A topic that was just deleted may still be there for a moment.
        self.wait_for("the topic is created", || {
            let mut new = NewTopic::new(&self.name, self.partitions, TopicReplication::Fixed(1));
            if let Some(limit) = &limit {
                new = new.set("max.message.bytes", limit);
            }
            let made = runtime().block_on(admin.create_topics([&new], &AdminOptions::new()));
            made.is_ok_and(|topics| topics[0].is_ok())
        });
        // A broker may report a topic a moment before it leads its partitions.
        self.wait_for("a leader for each partition", || self.ends().is_some());
    }

    /// Deletes it on the broker.
    pub(crate) fn delete(&self) {
        let admin: AdminClient<_> = self.client().create().expect("a client");
        let deleted = runtime().block_on(admin.delete_topics(&[&self.name], &AdminOptions::new()));
        deleted.expect("an answer")[0].as_ref().expect("it is deleted");
    }

    /// Deletes it and creates it again under its name.
    pub(crate) fn recreate(&self) {
        self.delete();
        self.create_again();
    }

    /// A topic that exists.
    pub(crate) fn named(broker: &'a Kafka, name: &str, partitions: i32) -> Self {
        Self { broker, name: name.to_owned(), group: name.to_owned(), partitions, record_limit: None }
    }

    /// The same, as the group of another topic reads it.
    pub(super) fn read_by(self, group: &str) -> Self {
        Self { group: group.to_owned(), ..self }
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.broker.bootstrap()).set("group.id", &self.group);
        client
    }

    fn asked(&self) -> BaseConsumer {
        self.client().create().expect("a client")
    }

    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < end, "topic {}: not within {PATIENCE:?}: {what}", self.name);
        }
    }

    /// Where each partition ends.
    pub(super) fn ends(&self) -> Option<Vec<i64>> {
        self.ends_told(&self.asked())
    }

    fn ends_told(&self, asked: &BaseConsumer) -> Option<Vec<i64>> {
        let end = |number| asked.fetch_watermarks(&self.name, number, PATIENCE).ok().map(|(_, high)| high);
        (0..self.partitions).map(end).collect()
    }

    /// True if no transaction is open: records after one of a dead producer are not read until that has timed out.
    pub(super) fn is_stable(&self) -> bool {
        let all: BaseConsumer =
            self.client().set("isolation.level", "read_uncommitted").create().expect("a client");
        let ends = self.ends_told(&all);
        ends.is_some() && ends == self.ends()
    }

    /// The offset that the group has committed for each partition, -1 for none; `None` if the broker does not answer.
    pub(super) fn committed(&self) -> Option<Vec<i64>> {
        committed(&self.asked(), &self.name, self.partitions)
    }

    /// Looks at the committed offsets until `done`, and answers how often.
    ///
    /// # Panics
    /// If one goes back.
    pub(super) fn watch(&self, done: &AtomicBool) -> usize {
        let asked = self.asked();
        let (mut last, mut looks) = (vec![-1; usize::try_from(self.partitions).unwrap_or_default()], 0);
        while !done.load(Ordering::Relaxed) {
            if let Some(now) = committed(&asked, &self.name, self.partitions) {
                assert!(
                    now.iter().zip(&last).all(|(now, last)| now >= last),
                    "{last:?} went back to {now:?}"
                );
                (last, looks) = (now, looks + 1);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        looks
    }

    /// Has the broker remove the records that there are, as its retention does.
    pub(crate) fn expire(&self) {
        let admin: AdminClient<_> = self.client().create().expect("a client");
        let mut ends = TopicPartitionList::new();
        for number in 0..self.partitions {
            ends.add_partition_offset(&self.name, number, Offset::End).expect("an offset");
        }
        runtime().block_on(admin.delete_records(&ends, &AdminOptions::new())).expect("they are removed");
    }

    /// Has the broker forget what the group has committed. No member may be there.
    pub(super) fn forget_offsets(&self) {
        let admin: AdminClient<_> = self.client().create().expect("a client");
        self.wait_for("the group is deleted", || {
            let gone = runtime().block_on(admin.delete_groups(&[&self.group], &AdminOptions::new()));
            gone.is_ok_and(|groups| groups[0].is_ok())
        });
    }

    /// All records that are committed.
    pub(crate) fn records(&self) -> Vec<Record> {
        let asked: BaseConsumer = self
            .client()
            .set("group.id", format!("{}-reader", self.name))
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a client");
        let mut places = TopicPartitionList::new();
        for number in 0..self.partitions {
            places.add_partition_offset(&self.name, number, Offset::Beginning).expect("an offset");
        }
        asked.assign(&places).expect("an assignment");
        let (mut records, mut ended) = (Vec::new(), 0);
        self.wait_for("all records", || {
            match asked.poll(PATIENCE) {
                Some(Ok(record)) => {
                    let headers = record.headers().into_iter().flat_map(|headers| headers.iter());
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let headers = headers
                        .map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default())))
                        .collect();
                    let payload = record.payload().unwrap_or_default().to_vec();
                    let place = (record.partition(), record.offset());
                    records.push(Record { payload, headers, place });
                }
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
                _ => {}
            }
            ended == self.partitions
        });
        records
    }
}

fn committed(asked: &BaseConsumer, topic: &str, partitions: i32) -> Option<Vec<i64>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let told = asked.committed_offsets(list, Duration::from_secs(5)).ok()?;
    let of = |own: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match own.offset() {
        Offset::Offset(offset) => offset,
        _ => -1,
    };
    Some(told.elements().iter().map(of).collect())
}

impl Waiting for Topic<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    /// The record key is the order's lane, or its id.
    fn publish(&self, lines: &[String]) {
        let publisher =
            KafkaPublisher::open(KafkaConnection::new([self.broker.bootstrap()])).expect("a publisher");
        runtime().block_on(async {
            for lines in lines.chunks(1000) {
                let batch: Vec<_> = lines.iter().map(|line| message(&self.name, line)).collect();
                for published in publisher.publish(&batch).await {
                    published.expect("a confirm");
                }
            }
        });
    }

    fn is_empty(&self) -> bool {
        let (committed, ends) = (self.committed(), self.ends());
        let empty = |own: &i64, end: &i64| own == end || (*own == -1 && *end == 0);
        matches!((committed, ends), (Some(own), Some(ends)) if own.iter().zip(&ends).all(|(own, end)| empty(own, end)))
    }
}

fn message(topic: &str, line: &str) -> Outgoing {
    let order: Value = serde_json::from_str(line).expect("an order is JSON");
    let key = order.get("lane").map_or_else(|| order["id"].to_string(), Value::to_string);
    Outgoing {
        destination: topic.to_owned(),
        order_key: Some(key.into()),
        payload: line.as_bytes().to_vec().into(),
        ..Outgoing::default()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
