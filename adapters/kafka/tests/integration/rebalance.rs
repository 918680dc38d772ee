//! Members that join, leave and vanish on a real broker: nothing is lost, and committed offsets never skip a record.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settled, Settlement, Tag};
use onceward::telemetry::SourceState;
use onceward_kafka::KafkaConsumer;
use onceward_test_servers::kafka::{Kafka, Listener, Security};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};

use crate::support::{LIMIT, Topic, take, text, until};

async fn ack(consumer: &KafkaConsumer, tags: &[Tag]) -> Vec<Settled> {
    let batch: Vec<_> = tags.iter().map(|tag| (*tag, Settlement::Ack)).collect();
    consumer.acker().settle(&batch).await.into_iter().map(Result::unwrap).collect()
}

/// Of an eager group all partitions are taken away, to be assigned again; of a cooperative one those that move.
async fn what_is_taken_away_waits_and_is_committed(strategy: &str, expected: [i64; 2]) {
    let topic = Topic::new(2).await;
    topic.fill(10).await;
    let mut config = topic.config();
    config.connection.properties.insert("partition.assignment.strategy".into(), strategy.into());
    let second = config.clone();
    config.topics.drain_timeout = Some(Duration::from_millis(5500));
    // Only the drain can have committed it.
    config.topics.commit_interval = Duration::from_secs(60);
    let mut first = KafkaConsumer::open(config).await.unwrap();
    let held = take(&mut first, 20).await;
    let second = KafkaConsumer::open(second).await.unwrap();
    let early = Instant::now() + Duration::from_secs(2);
    while Instant::now() < early {
        assert_eq!(second.assigned_partitions(), 0, "it was given away with messages in flight");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tags: Vec<_> = held.iter().map(|delivery| delivery.tag).collect();
    assert_eq!(ack(&first, &tags).await, vec![Settled::Done; 20]);
    until("the second member has a partition", || second.assigned_partitions() == 1).await;
    let mut committed = topic.committed().await;
    committed.sort_unstable();
    assert_eq!(committed, expected);
    first.close().await.unwrap();
    topic.wait_committed(&[10, 10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_moves_waits_for_what_is_in_flight_and_is_committed() {
    what_is_taken_away_waits_and_is_committed("cooperative-sticky", [-1, 10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_partitions_of_an_eager_member_wait_for_what_is_in_flight_and_are_committed() {
    what_is_taken_away_waits_and_is_committed("range", [10, 10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlasts_the_drain_is_too_late_and_comes_to_the_next_owner() {
    let topic = Topic::new(2).await;
    topic.fill(10).await;
    let mut config = topic.config();
    config.topics.drain_timeout = Some(Duration::from_millis(100));
    let mut first = KafkaConsumer::open(config).await.unwrap();
    let held = take(&mut first, 20).await;
    let mut second = topic.open().await;
    until("the first member has one partition left", || first.assigned_partitions() == 1).await;
    let again: Vec<_> = take(&mut second, 10).await.iter().map(text).collect();
    for delivery in &held {
        let moved = again.contains(&text(delivery));
        let expected = if moved { Settled::TooLate } else { Settled::Done };
        assert_eq!(ack(&first, &[delivery.tag]).await, [expected]);
    }
    assert_eq!(again.len(), 10);
    first.close().await.unwrap();
    let mut committed = topic.committed().await;
    committed.sort_unstable();
    // Zero, or nothing at all, for the partition that moved: nothing of it was settled by its owner.
    assert!(committed[0] <= 0 && committed[1] == 10, "{committed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_leaves_is_announced_and_commits_of_the_others_do_not_wait_for_it() {
    let topic = Topic::new(2).await;
    topic.fill(10).await;
    let mut config = topic.config();
    let second = config.clone();
    // It waits for the handlers longer than this test takes.
    config.topics.drain_timeout = Some(Duration::from_secs(60));
    let mut first = KafkaConsumer::open(config).await.unwrap();
    let mut notices = first.notices().unwrap();
    let mut held = take(&mut first, 20).await;
    let second = KafkaConsumer::open(second).await.unwrap();
    let notice = tokio::time::timeout(LIMIT, notices.recv()).await.unwrap().unwrap();
    let onceward::adapter::Notice::Leaving { epoch } = notice else { panic!("{notice:?}") };
    let leaving: Vec<_> = held.extract_if(.., |own| own.tag.epoch == epoch).collect();
    assert_eq!((leaving.len(), held.len()), (10, 10));
    let stays = usize::try_from(held[0].message.position().unwrap().partition).unwrap();
    // While it drains the other partition goes on: what is in hand is settled, and committed.
    for (number, own) in held.iter().enumerate() {
        assert_eq!(ack(&first, &[own.tag]).await, [Settled::Done]);
        until_committed(&topic, stays, i64::try_from(number).unwrap() + 1).await;
    }
    assert_eq!(second.assigned_partitions(), 0, "it was given away with messages in flight");
    // Given back without a run: the other member has it at once.
    let back: Vec<_> = leaving.iter().map(|own| (own.tag, Settlement::Abandon)).collect();
    assert!(first.acker().settle(&back).await.iter().all(|own| matches!(own, Ok(Settled::Done))));
    until("the second member has a partition", || second.assigned_partitions() == 1).await;
    topic.send(i32::try_from(stays).unwrap(), None, Some("late")).await;
    assert_eq!(text(&take(&mut first, 1).await[0]), "late");
    first.close().await.unwrap();
}

/// Waits until the group has committed `offset` of a partition.
async fn until_committed(topic: &Topic, partition: usize, offset: i64) {
    let end = Instant::now() + LIMIT;
    while topic.committed().await[partition] != offset {
        assert!(Instant::now() < end, "{:?}, not {offset} of {partition}", topic.committed().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_assigns_in_another_way_is_named_and_joined_when_its_members_are_gone() {
    let topic = Topic::new(1).await;
    let mut other = topic.config();
    other.connection.properties.insert("partition.assignment.strategy".into(), "range".into());
    let mut eager = KafkaConsumer::open(other).await.unwrap();
    until("the eager member has the partition", || eager.assigned_partitions() == 1).await;
    let facts = topic.config().inspect_group().await.unwrap();
    assert_eq!(facts.group_protocol.as_deref(), Some("range"));
    let mut late = KafkaConsumer::open(topic.config()).await.unwrap();
    let health = late.health().unwrap();
    let says = || match health.state() {
        SourceState::Down(why) => why.contains("\"range\"") && why.contains("cooperative-sticky"),
        _ => false,
    };
    until("the reason is told", says).await;
    eager.close().await.unwrap();
    until("it joins", || late.assigned_partitions() == 1).await;
    until("it is up", || health.state() == SourceState::Up).await;
    late.close().await.unwrap();
}

/// The client starts a partition that was just assigned only while no commit is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_comes_is_read_though_commits_are_answered_late_and_never_end() {
    let plain = Listener::new(Security::Plain);
    let proxy = Proxy::start(plain.address()).unwrap();
    let listener = plain.advertised(proxy.port());
    let broker = tokio::task::spawn_blocking(move || Kafka::start_with_listeners(&[listener], None));
    let broker = broker.await.unwrap();
    let topic = Topic::on(&broker, 2).await;
    let mut config = topic.config();
    config.connection.brokers = vec![listener.bootstrap()];
    config.topics.commit_interval = Duration::from_millis(20);
    let mut first = KafkaConsumer::open(config).await.unwrap();
    until("it has both", || first.assigned_partitions() == 2).await;
    let mut second = topic.open().await;
    until("each has one", || first.assigned_partitions() == 1).await;
    topic.fill(4000).await;
    // In hand, so that there is something to commit all the time.
    let mut held = take(&mut first, 4000).await;
    let stays = held[0].message.position().unwrap().partition;
    // More commits are due than are answered.
    proxy.set(Direction::ToClient, Flow::Delay(Duration::from_millis(200)));
    let closing = tokio::spawn(async move { second.close().await });
    let (mut seen, end) = (false, Instant::now() + LIMIT);
    while !seen {
        assert!(Instant::now() < end && !held.is_empty(), "the partition that came is not read");
        let next = held.remove(0);
        assert_eq!(ack(&first, &[next.tag]).await, [Settled::Done]);
        let received = tokio::time::timeout(Duration::from_millis(8), first.receive()).await;
        let taken = received.map(|received| received.unwrap().unwrap()).unwrap_or_default();
        seen = taken.iter().any(|own| own.message.position().unwrap().partition != stays);
    }
    closing.await.unwrap().unwrap();
    proxy.heal();
    first.close().await.unwrap();
    drop(broker);
}

/// What happened to each record.
type Effects = Arc<Mutex<BTreeMap<String, u32>>>;

/// A member that handles and acks until it is stopped: in order, or as if killed.
async fn member(topic: Arc<Topic>, effects: Effects, go: Arc<AtomicBool>, orderly: bool) {
    let mut consumer = KafkaConsumer::open(topic.config()).await.unwrap();
    while !go.load(Ordering::Relaxed) {
        let received = tokio::time::timeout(Duration::from_millis(50), consumer.receive()).await;
        let Ok(received) = received else { continue };
        for delivery in received.unwrap().unwrap() {
            *effects.lock().unwrap().entry(text(&delivery)).or_default() += 1;
            let tag = delivery.tag;
            ack(&consumer, &[tag]).await;
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    if orderly {
        consumer.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_under_load_and_committed_offsets_never_go_back() {
    const EACH: usize = 2000;
    let topic = Arc::new(Topic::new(4).await);
    let effects = Effects::default();
    let stay = Arc::new(AtomicBool::new(false));
    let steady = tokio::spawn(member(Arc::clone(&topic), Arc::clone(&effects), Arc::clone(&stay), true));
    let (filling, full) = (Arc::clone(&topic), 4 * EACH);
    let fill = tokio::spawn(async move { filling.fill(EACH).await });
    let mut last = vec![-1; 4];
    for round in 0..6 {
        let go = Arc::new(AtomicBool::new(false));
        let guest = member(Arc::clone(&topic), Arc::clone(&effects), Arc::clone(&go), round % 2 == 0);
        let guest = tokio::spawn(guest);
        let until = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < until {
            let now = topic.committed().await;
            assert!(now.iter().zip(&last).all(|(now, last)| now >= last), "{last:?} went back to {now:?}");
            last = now;
        }
        go.store(true, Ordering::Relaxed);
        guest.await.unwrap();
    }
    fill.await.unwrap();
    let mut seen = 0;
    while seen < full {
        let before = seen;
        let grows = || {
            seen = effects.lock().unwrap().len();
            seen > before || seen == full
        };
        until(&format!("more than {before} were handled"), grows).await;
    }
    topic.wait_committed(&[EACH as i64; 4]).await;
    stay.store(true, Ordering::Relaxed);
    tokio::time::timeout(LIMIT, steady).await.unwrap().unwrap();
    assert_eq!(topic.committed().await, [EACH as i64; 4]);
}
