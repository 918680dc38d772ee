//! Helpers of the tests on a real broker: topics, records, and committed offsets.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Delivery, Settled, Settlement};
use onceward_kafka::{KafkaConfig, KafkaConsumer};
use onceward_test_servers::kafka::Kafka;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A name that no other test has.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A topic of its own on a broker, and a group that reads it.
pub(crate) struct Topic {
    pub(crate) bootstrap: String,
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) partitions: i32,
    producer: FutureProducer,
}

impl Topic {
    /// On the shared broker.
    pub(crate) async fn new(partitions: i32) -> Self {
        let broker = tokio::task::spawn_blocking(Kafka::shared).await.unwrap();
        Self::on(broker, partitions).await
    }

    pub(crate) async fn on(broker: &Kafka, partitions: i32) -> Self {
        let bootstrap = broker.bootstrap();
        let name = unique("topic");
        create(&bootstrap, &name, partitions).await;
        Self::made(bootstrap, name, partitions)
    }

    /// One that exists already.
    pub(crate) fn made(bootstrap: String, name: String, partitions: i32) -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &bootstrap).set("enable.idempotence", "true");
        Self { producer: client.create().unwrap(), group: unique("group"), name, bootstrap, partitions }
    }

    pub(crate) fn config(&self) -> KafkaConfig {
        let mut config = KafkaConfig::new([&self.bootstrap], [&self.name], &self.group);
        config.connection.properties.insert("session.timeout.ms".into(), "6000".into());
        config.connection.properties.insert("heartbeat.interval.ms".into(), "300".into());
        config
    }

    /// A member that has partitions.
    pub(crate) async fn open(&self) -> KafkaConsumer {
        let consumer = KafkaConsumer::open(self.config()).await.unwrap();
        until("partitions are assigned", || consumer.assigned_partitions() > 0).await;
        consumer
    }

    pub(crate) async fn send(&self, partition: i32, key: Option<&str>, payload: Option<&str>) {
        self.send_with(partition, key, payload, OwnedHeaders::new()).await;
    }

    pub(crate) async fn send_with(
        &self,
        partition: i32,
        key: Option<&str>,
        payload: Option<&str>,
        headers: OwnedHeaders,
    ) {
        let mut record = FutureRecord::<str, str>::to(&self.name).partition(partition).headers(headers);
        (record.key, record.payload) = (key, payload);
        self.producer.send(record, LIMIT).await.unwrap();
    }

    /// Sends `count` records to each partition; they are `PARTITION:NUMBER`, and so is their key.
    pub(crate) async fn fill(&self, count: usize) {
        let mut sent = Vec::new();
        for number in 0..count {
            for partition in 0..self.partitions {
                let text = format!("{partition}:{number}");
                let record = FutureRecord::to(&self.name).partition(partition).key(&text).payload(&text);
                sent.push(self.producer.send_result(record).unwrap());
            }
        }
        for confirmed in sent {
            confirmed.await.unwrap().unwrap();
        }
    }

    /// Deletes the topic.
    pub(crate) async fn delete(&self) {
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap();
        let gone = admin.delete_topics(&[&self.name], &AdminOptions::new()).await.unwrap();
        gone[0].as_ref().unwrap();
    }

    /// Deletes the topic and creates it again.
    pub(crate) async fn recreate(&self, partitions: i32) {
        self.delete().await;
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap();
        let end = Instant::now() + LIMIT;
        let topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1));
        // The name is free a moment later.
        while let Err(error) = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0) {
            assert!(Instant::now() < end, "the topic cannot be created again: {error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        wait_for_leaders(&self.bootstrap, &self.name, partitions).await;
    }

    /// The first record of partition 0, as another client reads it.
    pub(crate) async fn raw(&self) -> OwnedMessage {
        let (bootstrap, name) = (self.bootstrap.clone(), self.name.clone());
        let read = move || {
            let mut client = ClientConfig::new();
            let reader: BaseConsumer =
                client.set("bootstrap.servers", bootstrap).set("group.id", "reader").create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&name, 0, Offset::Beginning).unwrap();
            reader.assign(&list).unwrap();
            reader.poll(LIMIT).unwrap().unwrap().detach()
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    /// Where each partition ends.
    pub(crate) async fn ends(&self) -> Vec<i64> {
        let (bootstrap, name, partitions) = (self.bootstrap.clone(), self.name.clone(), self.partitions);
        let ask = move || {
            let asked: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
            (0..partitions).map(|number| asked.fetch_watermarks(&name, number, LIMIT).unwrap().1).collect()
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    /// Has the broker delete the records before an offset, as retention does.
    pub(crate) async fn delete_before(&self, partition: i32, offset: i64) {
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset)).unwrap();
        let deleted = admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
        deleted.elements()[0].error().unwrap();
    }

    /// Commits an offset of the group as another program would. The broker allows it only while the group has no members.
    pub(crate) async fn commit(&self, partition: i32, offset: i64) {
        let (bootstrap, group, name) = (self.bootstrap.clone(), self.group.clone(), self.name.clone());
        let commit = move || {
            let mut client = ClientConfig::new();
            let other: BaseConsumer =
                client.set("bootstrap.servers", bootstrap).set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&name, partition, Offset::Offset(offset)).unwrap();
            other.commit(&list, rdkafka::consumer::CommitMode::Sync).unwrap();
        };
        tokio::task::spawn_blocking(commit).await.unwrap();
    }

    /// What the group has committed for each partition; -1 for nothing.
    pub(crate) async fn committed(&self) -> Vec<i64> {
        let (bootstrap, group) = (self.bootstrap.clone(), self.group.clone());
        let (name, partitions) = (self.name.clone(), self.partitions);
        let ask = move || {
            let mut client = ClientConfig::new();
            let asked: BaseConsumer =
                client.set("bootstrap.servers", bootstrap).set("group.id", group).create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&name, 0, partitions - 1);
            // A group's first coordinator may take a moment to load.
            let end = Instant::now() + LIMIT;
            let committed = loop {
                match asked.committed_offsets(list.clone(), LIMIT) {
                    Ok(committed) => break committed,
                    Err(error) => assert!(Instant::now() < end, "{error}"),
                }
            };
            let of = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element
                .offset()
            {
                Offset::Offset(offset) => offset,
                _ => -1,
            };
            committed.elements().iter().map(of).collect()
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    /// Waits until the group has committed these offsets.
    pub(crate) async fn wait_committed(&self, expected: &[i64]) {
        let end = Instant::now() + LIMIT;
        loop {
            let committed = self.committed().await;
            if committed == expected {
                return;
            }
            assert!(Instant::now() < end, "committed are {committed:?}, expected {expected:?}");
        }
    }
}

pub(crate) async fn create(bootstrap: &str, name: &str, partitions: i32) {
    create_with(bootstrap, name, partitions, &[]).await;
}

/// A topic with settings of its own.
pub(crate) async fn create_with(bootstrap: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    topic.config = settings.to_vec();
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
    wait_for_leaders(bootstrap, name, partitions).await;
}

/// A broker may report a topic a moment before it leads its partitions.
async fn wait_for_leaders(bootstrap: &str, name: &str, partitions: i32) {
    let (bootstrap, name) = (bootstrap.to_owned(), name.to_owned());
    let led = move || {
        let asked: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
        let end = Instant::now() + LIMIT;
        while !(0..partitions).all(|number| asked.fetch_watermarks(&name, number, LIMIT).is_ok()) {
            assert!(Instant::now() < end, "the topic {name} has no leaders");
        }
    };
    tokio::task::spawn_blocking(led).await.unwrap();
}

/// Sends five records in each transaction, and ends it so.
pub(crate) async fn transact(topic: &Topic, commits: &[bool]) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &topic.bootstrap).set("transactional.id", &topic.name);
    let producer: FutureProducer = client.create().unwrap();
    let initialising = producer.clone();
    tokio::task::spawn_blocking(move || initialising.init_transactions(LIMIT)).await.unwrap().unwrap();
    for (number, commit) in commits.iter().copied().enumerate() {
        producer.begin_transaction().unwrap();
        for record in 0..5 {
            let text = format!("{number}:{record}");
            let record = FutureRecord::<str, str>::to(&topic.name).partition(0).payload(&text);
            producer.send(record, LIMIT).await.unwrap();
        }
        let ending = producer.clone();
        let end = move || match commit {
            true => ending.commit_transaction(LIMIT),
            false => ending.abort_transaction(LIMIT),
        };
        tokio::task::spawn_blocking(end).await.unwrap().unwrap();
    }
}

/// Waits for `holds`, looking every few milliseconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The next `count` deliveries.
pub(crate) async fn take(consumer: &mut KafkaConsumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let received = tokio::time::timeout(LIMIT, consumer.receive()).await;
        let received = received.unwrap_or_else(|_| panic!("nothing more came after {}", taken.len()));
        taken.extend(received.unwrap().unwrap());
    }
    taken
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.message.payload()).into_owned()
}

/// Acks deliveries; what each settlement was.
pub(crate) async fn ack(consumer: &KafkaConsumer, deliveries: &[Delivery]) -> Vec<Settled> {
    let batch: Vec<_> = deliveries.iter().map(|own| (own.tag, Settlement::Ack)).collect();
    consumer.acker().settle(&batch).await.into_iter().map(Result::unwrap).collect()
}
