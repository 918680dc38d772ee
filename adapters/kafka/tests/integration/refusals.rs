//! Exact answers of a broker, from the client's mock: refused commits, a membership that was lost.

use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settled};
use onceward_kafka::KafkaConsumer;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::support::{LIMIT, Topic, ack, take, text, unique};

fn cluster(brokers: i32) -> (MockCluster<'static, DefaultProducerContext>, Topic) {
    let cluster = MockCluster::new(brokers).unwrap();
    let name = unique("orders");
    cluster.create_topic(&name, 1, 1).unwrap();
    let topic = Topic::made(cluster.bootstrap_servers(), name, 1);
    (cluster, topic)
}

/// Acks deliveries until the group has committed `offset`.
async fn ack_until_committed(consumer: &mut KafkaConsumer, topic: &Topic, offset: i64) {
    let end = Instant::now() + LIMIT;
    while topic.committed().await != [offset] {
        assert!(Instant::now() < end, "never committed: {:?}", topic.committed().await);
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(100), consumer.receive()).await {
            ack(consumer, &received.unwrap().unwrap()).await;
        }
    }
}

async fn a_refused_commit_is_made_up_for(answers: &[Answer]) {
    let (cluster, topic) = cluster(1);
    topic.fill(10).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    cluster.request_errors(Api::OffsetCommit, answers);
    ack(&consumer, &taken).await;
    ack_until_committed(&mut consumer, &topic, 10).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_refused_during_a_rebalance_is_made_up_for() {
    a_refused_commit_is_made_up_for(&[Answer::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS; 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_an_illegal_generation_is_made_up_for() {
    a_refused_commit_is_made_up_for(&[Answer::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_ran_out_of_time_is_made_up_for() {
    a_refused_commit_is_made_up_for(&[Answer::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_says_it_moved_is_asked_for() {
    a_refused_commit_is_made_up_for(&[Answer::RD_KAFKA_RESP_ERR_NOT_COORDINATOR; 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_whose_broker_is_gone_is_found_on_another() {
    let (cluster, topic) = cluster(2);
    cluster.partition_leader(&topic.name, 0, Some(1)).unwrap();
    cluster.coordinator(MockCoordinator::Group(topic.group.clone()), 2).unwrap();
    topic.fill(10).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    cluster.broker_down(2).unwrap();
    cluster.coordinator(MockCoordinator::Group(topic.group.clone()), 1).unwrap();
    ack(&consumer, &taken).await;
    ack_until_committed(&mut consumer, &topic, 10).await;
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_though_the_broker_does_not_answer() {
    let (cluster, topic) = cluster(1);
    topic.fill(10).await;
    let mut consumer = topic.open().await;
    let taken = take(&mut consumer, 10).await;
    ack(&consumer, &taken).await;
    cluster.broker_round_trip_time(1, Duration::from_secs(120)).unwrap();
    let began = Instant::now();
    let closed = consumer.close().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}: {closed:?}");
}

/// Whether no commit was sent since the mock was set to reject the next one: a commit is still rejected.
fn nothing_was_committed(topic: &Topic) -> bool {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &topic.bootstrap).set("group.id", "another");
    let another: BaseConsumer = client.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic.name, 0, Offset::Offset(1)).unwrap();
    another.commit(&list, CommitMode::Sync).is_err()
}

/// Whatever a broker would make of such a commit: it is not even asked for.
async fn of_a_lost_partition_nothing_is_committed_and_it_comes_again(lost: Answer) {
    let (cluster, topic) = cluster(1);
    topic.fill(10).await;
    let mut config = topic.config();
    // Nothing is committed by chance before.
    config.topics.commit_interval = Duration::from_secs(60);
    let mut consumer = KafkaConsumer::open(config).await.unwrap();
    let taken = take(&mut consumer, 10).await;
    assert_eq!(ack(&consumer, &taken[..9]).await, [Settled::Done; 9]);
    cluster.request_errors(Api::OffsetCommit, &[Answer::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED]);
    cluster.request_errors(Api::Heartbeat, &[lost]);
    let again = take(&mut consumer, 10).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), taken.iter().map(text).collect::<Vec<_>>());
    assert_eq!(ack(&consumer, &taken[9..]).await, [Settled::TooLate]);
    assert!(nothing_was_committed(&topic), "something was to be committed");
    assert_eq!(topic.committed().await, [-1]);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_the_broker_has_forgotten_commits_nothing() {
    let forgotten = Answer::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID;
    of_a_lost_partition_nothing_is_committed_and_it_comes_again(forgotten).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_an_older_generation_commits_nothing() {
    let older = Answer::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION;
    of_a_lost_partition_nothing_is_committed_and_it_comes_again(older).await;
}
