//! Tests with librdkafka's mock cluster, for faults that a real broker does not produce on demand: partitions without a
//! leader, slow and lost coordinators.

use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Delivery, Settlement};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::KafkaConfig;
use crate::KafkaConsumer;
use crate::client::native;

const LIMIT: Duration = Duration::from_secs(60);
const TOPIC: &str = "orders";
const GROUP: &str = "billing";

/// A cluster with one topic, and a producer of it.
struct Stage {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
}

impl Stage {
    fn new(brokers: i32, partitions: i32) -> Self {
        let cluster = MockCluster::new(brokers).unwrap();
        cluster.create_topic(TOPIC, partitions, 1).unwrap();
        for partition in 0..partitions {
            cluster.partition_leader(TOPIC, partition, Some(1)).unwrap();
        }
        let producer =
            ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
        Self { cluster, producer }
    }

    fn send(&self, partition: i32, payload: &str) {
        let record = BaseRecord::<str, str>::to(TOPIC).partition(partition).payload(payload);
        self.producer.send(record).unwrap();
        self.producer.flush(LIMIT).unwrap();
    }

    fn config(&self) -> KafkaConfig {
        KafkaConfig::new([self.cluster.bootstrap_servers()], [TOPIC], GROUP)
    }

    fn client(&self) -> BaseConsumer {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.cluster.bootstrap_servers()).set("group.id", GROUP);
        client.create().unwrap()
    }

    /// Commits an offset of partition 0 as another member would.
    fn commit(&self, offset: i64, metadata: &str) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(TOPIC, 0, Offset::Offset(offset)).unwrap();
        list.find_partition(TOPIC, 0).unwrap().set_metadata(metadata);
        self.client().commit(&list, CommitMode::Sync).unwrap();
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn take(consumer: &mut KafkaConsumer) -> Vec<Delivery> {
    let received = tokio::time::timeout(LIMIT, consumer.receive()).await.expect("records in time");
    received.unwrap().unwrap()
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.message.payload()).into_owned()
}

async fn wait_until_pending(consumer: &KafkaConsumer) {
    until("its partition is assigned and pending", || {
        !consumer.handle.with(|state| state.pending.is_empty())
    })
    .await;
    assert_eq!(consumer.assigned_partitions(), 0);
}

/// The committed offset exists in the new log, but refers to the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_partition_without_a_leader_is_read_from_its_start_when_it_has_one() {
    let stage = Stage::new(1, 1);
    for number in 0..5 {
        stage.send(0, &number.to_string());
    }
    stage.commit(3, "onceward 00000000000000000000000000000001 0");
    stage.cluster.partition_leader(TOPIC, 0, None).unwrap();
    let mut consumer = KafkaConsumer::open(stage.config()).await.unwrap();
    wait_until_pending(&consumer).await;
    assert_eq!(consumer.is_idle().await, Some(false));
    stage.cluster.partition_leader(TOPIC, 0, Some(1)).unwrap();
    assert_eq!(text(&take(&mut consumer).await[0]), "0");
    assert_eq!(consumer.health().unwrap().resets(), 1);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_starts_at_the_end_waits_for_a_leader_and_others_go_on() {
    let stage = Stage::new(1, 2);
    stage.send(0, "old");
    stage.send(1, "old");
    stage.cluster.partition_leader(TOPIC, 0, None).unwrap();
    let mut config = stage.config();
    config.connection.properties.insert("auto.offset.reset".into(), "latest".into());
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    until("the other partition is read", || consumer.assigned_partitions() == 1).await;
    stage.send(1, "first");
    assert_eq!(text(&take(&mut consumer).await[0]), "first");
    stage.cluster.partition_leader(TOPIC, 0, Some(1)).unwrap();
    until("both are read", || consumer.assigned_partitions() == 2).await;
    stage.send(0, "second");
    assert_eq!(text(&take(&mut consumer).await[0]), "second");
    consumer.close().await.unwrap();
}

/// Its records would have other positions under the topic's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_topic_id_is_unknown_is_not_read() {
    let stage = Stage::new(1, 1);
    stage.send(0, "first");
    let client = stage.client();
    let described = native::describe_topics(client.client(), &[TOPIC], LIMIT).unwrap().remove(0);
    let id = described.id.expect("this cluster has ids");
    let mut consumer = KafkaConsumer::open(stage.config()).await.unwrap();
    // As if the broker did not know the new topic yet.
    consumer.handle.with(|state| state.deleted_topics.insert(id.clone(), Instant::now()));
    wait_until_pending(&consumer).await;
    consumer.handle.with(|state| state.deleted_topics.clear());
    let position = take(&mut consumer).await[0].message.position().cloned().unwrap();
    assert!(position.incarnation.ends_with(&format!("/{id}")), "{position:?}");
    consumer.close().await.unwrap();
}

/// A single report of one broker is no reason to read the whole log again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_that_is_not_confirmed_is_withdrawn() {
    let stage = Stage::new(1, 1);
    stage.send(0, "first");
    let mut consumer = KafkaConsumer::open(stage.config()).await.unwrap();
    let epoch = take(&mut consumer).await[0].tag.epoch;
    consumer.handle.with(|state| state.set_suspect(epoch, true));
    until("the log is checked", || consumer.handle.with(|state| !state.partitions[&epoch].suspect)).await;
    stage.send(0, "second");
    let second = take(&mut consumer).await;
    assert_eq!((text(&second[0]), second[0].tag.epoch), ("second".to_owned(), epoch));
    assert_eq!(consumer.health().unwrap().resets(), 0);
    consumer.close().await.unwrap();
}

/// A synchronous final commit without a coordinator would block the poll thread for as long as a session lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_without_a_coordinator_does_not_block_the_poll_thread() {
    let stage = Stage::new(2, 2);
    stage.cluster.coordinator(MockCoordinator::Group(GROUP.into()), 2).unwrap();
    stage.send(0, "0");
    stage.send(1, "1");
    let mut first = KafkaConsumer::open(stage.config()).await.unwrap();
    let mut taken = take(&mut first).await;
    while taken.len() < 2 {
        taken.extend(take(&mut first).await);
    }
    let second = KafkaConsumer::open(stage.config()).await.unwrap();
    until("a partition is revoked", || first.handle.with(|state| state.revocation.is_some())).await;
    stage.cluster.broker_down(2).unwrap();
    let acks: Vec<_> = taken.iter().map(|own| (own.tag, Settlement::Ack)).collect();
    first.acker().settle(&acks).await;
    until("it is given up", || first.handle.with(|state| state.revocation.is_none())).await;
    let answer = tokio::time::timeout(Duration::from_secs(10), first.is_idle()).await;
    assert!(answer.is_ok(), "the poll thread waits for the coordinator");
    stage.cluster.broker_up(2).unwrap();
    drop((first, second));
}
