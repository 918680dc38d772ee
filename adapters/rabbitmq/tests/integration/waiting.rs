//! Retries in delay queues: no message is lost, whatever fails.

use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settled, Settlement, Tag};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::rabbitmq::{RabbitMq, url};

use crate::support::{Admin, Kind, shared, take, text, unique, until};

const DELAY: Duration = Duration::from_millis(800);
/// The queue for it: delays are rounded up.
const WAIT: &str = "wait.800ms";

fn config(port: u16, queue: &str) -> RabbitmqConfig {
    let mut config = RabbitmqConfig::new(url(port), queue);
    config.queue.wait_queues_from = Some(DELAY);
    config
}

/// The tag on the wire, the same if a message waited in the consumer.
fn wire(tag: Tag) -> (u64, u64) {
    (tag.epoch, tag.number & ((1 << 48) - 1))
}

async fn settle(consumer: &RabbitmqConsumer, tags: &[Tag], settlement: Settlement) {
    let batch: Vec<_> = tags.iter().map(|tag| (*tag, settlement)).collect();
    for result in consumer.acker().settle(&batch).await {
        assert_eq!(result.unwrap(), Settled::Done);
    }
}

/// Takes `count` deliveries and returns their tags and texts.
async fn taken(consumer: &mut RabbitmqConsumer, count: usize) -> (Vec<Tag>, Vec<String>) {
    let deliveries = take(consumer, count).await;
    deliveries.iter().map(|delivery| (delivery.tag, text(delivery))).unzip()
}

async fn depth_becomes(broker: &RabbitMq, queue: &str, depth: (u64, u64)) {
    let what = format!("{queue} has {depth:?}");
    until(Duration::from_secs(60), &what, async || broker.depth(queue) == depth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_waits_in_the_broker_and_comes_back_as_it_was_but_not_earlier() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = unique("queue");
        admin.declare(&queue, kind).await;
        admin.publish(&queue, ["1".to_owned()]).await;
        let mut consumer = RabbitmqConsumer::open(config(broker.port(), &queue)).await.unwrap();
        // More than once: a second stay must not be taken for a loop of dead letters.
        for _ in 0..3 {
            let (tags, texts) = taken(&mut consumer, 1).await;
            assert_eq!(texts, ["1"]);
            let sent = Instant::now();
            settle(&consumer, &tags, Settlement::Retry { after: DELAY }).await;
            assert_eq!(consumer.is_idle().await, Some(false));
            let delivery = take(&mut consumer, 1).await.pop().unwrap();
            assert_ne!(wire(delivery.tag), wire(tags[0]), "it waited here");
            assert!(sent.elapsed() >= DELAY, "it came after {:?}", sent.elapsed());
            assert_eq!(delivery.message.id(), Some(&b"1"[..]));
            let retry = Settlement::Retry { after: Duration::ZERO };
            consumer.acker().settle(&[(delivery.tag, retry)]).await;
        }
        let (tags, _) = taken(&mut consumer, 1).await;
        settle(&consumer, &tags, Settlement::Ack).await;
        depth_becomes(broker, &queue, (0, 0)).await;
        assert_eq!(consumer.is_idle().await, Some(true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_original_is_acked_only_after_the_confirm() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let mut consumer = RabbitmqConsumer::open(config(proxy.port(), &queue)).await.unwrap();
    let (tags, _) = taken(&mut consumer, 1).await;
    // The copy reaches the wait queue, its confirm does not reach us; what goes to the broker passes all the time.
    proxy.set(Direction::ToClient, Flow::Stall);
    settle(&consumer, &tags, Settlement::Retry { after: DELAY }).await;
    // The copy is in the wait queue and then beside the original, which is still ours.
    depth_becomes(broker, &queue, (0, 2)).await;
    proxy.heal();
    // Whether the confirm came in time or not, something is there to be handled, and it can be acked.
    let (tags, texts) = taken(&mut consumer, 1).await;
    assert_eq!(texts, ["1"]);
    settle(&consumer, &tags, Settlement::Ack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_that_never_comes_keeps_the_original_and_it_comes_again() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let mut consumer = RabbitmqConsumer::open(config(proxy.port(), &queue)).await.unwrap();
    let (tags, _) = taken(&mut consumer, 1).await;
    proxy.drop_replies();
    settle(&consumer, &tags, Settlement::Retry { after: DELAY }).await;
    depth_becomes(broker, &queue, (0, 2)).await;
    proxy.cut();
    // Both come: that is what "unknown" means, and the store knows them for one. The original comes once more, with an old
    // tag, if its wait in this process began before the connection was cut.
    let mut came = 0;
    while broker.depth(&queue) != (0, 0) {
        if let Ok((tags, texts)) = tokio::time::timeout(DELAY * 2, taken(&mut consumer, 1)).await {
            assert!(texts.iter().all(|text| text == "1"), "{texts:?}");
            came += texts.len();
            let acks: Vec<_> = tags.into_iter().map(|tag| (tag, Settlement::Ack)).collect();
            for settled in consumer.acker().settle(&acks).await {
                settled.unwrap();
            }
        }
        assert!(came <= 6, "it comes again and again");
    }
    assert!(came >= 2, "the copy and the original");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_queue_that_was_deleted_makes_messages_wait_here_and_is_declared_again() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    let mut consumer = RabbitmqConsumer::open(config(broker.port(), &queue)).await.unwrap();
    admin.delete(&format!("{queue}.{WAIT}")).await;
    let (tags, _) = taken(&mut consumer, 1).await;
    let sent = Instant::now();
    settle(&consumer, &tags, Settlement::Retry { after: DELAY }).await;
    let (again, texts) = taken(&mut consumer, 1).await;
    // Held, not given back to the broker: the same delivery, which uses up no delivery limit.
    assert_eq!((wire(again[0]), &texts[0][..]), (wire(tags[0]), "1"));
    // A tag of its own: the old one settles nothing any more.
    assert_ne!(again, tags);
    settle(&consumer, &tags, Settlement::Ack).await;
    assert!(sent.elapsed() >= DELAY, "it came after {:?}", sent.elapsed());
    settle(&consumer, &again, Settlement::Retry { after: DELAY }).await;
    let (last, _) = taken(&mut consumer, 1).await;
    assert_ne!(wire(last[0]), wire(tags[0]));
    settle(&consumer, &last, Settlement::Ack).await;
    depth_becomes(broker, &queue, (0, 0)).await;
}

/// Another application declared a queue of that name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_queue_with_other_arguments_concerns_its_own_delay_only() {
    const COUNT: usize = 50;
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    admin.declare(&format!("{queue}.wait.1200ms"), Kind::Classic).await;
    admin.publish(&queue, (0..2 * COUNT).map(|number| number.to_string())).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let mut consumer = RabbitmqConsumer::open(config(proxy.port(), &queue)).await.unwrap();
    let (tags, _) = taken(&mut consumer, 2 * COUNT).await;
    for (place, tag) in tags.iter().enumerate() {
        let after = if place < COUNT { Duration::from_millis(1200) } else { DELAY };
        settle(&consumer, &[*tag], Settlement::Retry { after }).await;
    }
    let (again, _) = taken(&mut consumer, 2 * COUNT).await;
    let before: std::collections::BTreeSet<_> = tags.iter().map(|tag| wire(*tag)).collect();
    let held = again.iter().filter(|tag| before.contains(&wire(**tag))).count();
    assert_eq!(held, COUNT, "those with the other delay were to travel");
    settle(&consumer, &again, Settlement::Ack).await;
    depth_becomes(broker, &queue, (0, 0)).await;
    assert_eq!(proxy.accepted(), 2, "connections were dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_not_idle_while_messages_of_another_process_wait_and_is_when_their_queue_is_gone() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    let mut earlier = RabbitmqConsumer::open(config(broker.port(), &queue)).await.unwrap();
    let (tags, _) = taken(&mut earlier, 1).await;
    settle(&earlier, &tags, Settlement::Retry { after: Duration::from_secs(3600) }).await;
    let wait = format!("{queue}.wait.4915200ms");
    depth_becomes(broker, &queue, (0, 0)).await;
    earlier.close().await.unwrap();
    let mut later = RabbitmqConsumer::open(config(broker.port(), &queue)).await.unwrap();
    until(Duration::from_secs(60), "the wait queue tells its length", async || broker.depth(&wait) == (1, 0))
        .await;
    assert_eq!(later.is_idle().await, Some(false));
    assert_eq!(later.is_idle().await, Some(false));
    admin.delete(&wait).await;
    assert_eq!(later.is_idle().await, Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_delays_are_spent_here() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    let mut consumer = RabbitmqConsumer::open(config(broker.port(), &queue)).await.unwrap();
    let (mut tags, _) = taken(&mut consumer, 1).await;
    let first = tags[0];
    for _ in 0..30 {
        settle(&consumer, &tags, Settlement::Retry { after: Duration::from_millis(10) }).await;
        tags = taken(&mut consumer, 1).await.0;
        assert_eq!(wire(tags[0]), wire(first));
    }
    settle(&consumer, &tags, Settlement::Ack).await;
    depth_becomes(broker, &queue, (0, 0)).await;
}

/// Killed with copies confirmed, under way and not yet sent, and with messages waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_between_publish_and_ack_loses_nothing_that_waits() {
    const COUNT: usize = 200;
    let mut broker = tokio::task::spawn_blocking(RabbitMq::start).await.unwrap();
    let admin = Admin::connect(&broker).await;
    admin.declare("orders", Kind::Quorum).await;
    admin.publish("orders", (0..COUNT).map(|number| number.to_string())).await;
    let mut consumer = RabbitmqConsumer::open(config(broker.port(), "orders")).await.unwrap();
    let (tags, _) = taken(&mut consumer, COUNT).await;
    for part in tags.chunks(20) {
        settle(&consumer, part, Settlement::Retry { after: DELAY }).await;
    }
    drop(admin);
    broker = tokio::task::spawn_blocking(move || {
        broker.kill();
        broker.start_again();
        broker
    })
    .await
    .unwrap();
    let mut seen = std::collections::BTreeSet::<String>::new();
    let mut deliveries = 0;
    while seen.len() < COUNT {
        let (tags, texts) = taken(&mut consumer, 1).await;
        deliveries += tags.len();
        let acks: Vec<_> = tags.iter().map(|tag| (*tag, Settlement::Ack)).collect();
        let results = consumer.acker().settle(&acks).await;
        // A message that waited here is returned again under its old tag until the loss of the channel is noticed.
        for (result, text) in results.into_iter().zip(texts) {
            if result.unwrap() == Settled::Done {
                seen.insert(text);
            }
        }
    }
    assert!(deliveries <= 3 * COUNT, "{deliveries}");
    drop(consumer);
    drop(broker);
}
