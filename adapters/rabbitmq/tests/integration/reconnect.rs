//! Lost connections, channels and subscriptions: messages are redelivered, and old settlements affect no new delivery.

use std::time::{Duration, Instant};

use lapin::ConnectionProperties;
use lapin::types::AMQPValue;
use onceward::ErrorKind;
use onceward::adapter::{Acker, Consumer, Settled, Settlement, Tag};
use onceward_rabbitmq::{
    RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher, RabbitmqQueueConfig,
};
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::{RabbitMq, url};

use crate::support::{Admin, Kind, consumer_of, shared, take, text, unique, until};

/// A queue with `count` messages, and a consumer of it behind a proxy.
async fn behind_proxy(kind: Kind, count: usize, heartbeat: u64) -> (Admin, String, Proxy, RabbitmqConsumer) {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, kind).await;
    admin.publish(&queue, (0..count).map(|number| number.to_string())).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let mut config = RabbitmqConfig::new(url(proxy.port()), &queue);
    config.endpoint.heartbeat = Duration::from_secs(heartbeat);
    let consumer = RabbitmqConsumer::open(config).await.unwrap();
    (admin, queue, proxy, consumer)
}

fn acks(tags: impl IntoIterator<Item = Tag>) -> Vec<(Tag, Settlement)> {
    tags.into_iter().map(|tag| (tag, Settlement::Ack)).collect()
}

async fn settle(acker: &dyn Acker, batch: &[(Tag, Settlement)], expected: Settled) {
    let results = acker.settle(batch).await;
    assert_eq!(results.len(), batch.len());
    for result in results {
        assert_eq!(result.unwrap(), expected);
    }
}

/// Takes `count` deliveries and returns their tags and texts.
async fn taken(consumer: &mut RabbitmqConsumer, count: usize) -> (Vec<Tag>, Vec<String>) {
    let deliveries = take(consumer, count).await;
    assert_eq!(deliveries.len(), count);
    deliveries.iter().map(|delivery| (delivery.tag, text(delivery))).unzip()
}

async fn is_empty(queue: &str) {
    let broker = shared().await;
    until(Duration::from_secs(60), "the queue is empty", async || broker.depth(queue) == (0, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_with_300_unacked_messages_brings_them_again_and_old_acks_go_nowhere() {
    for kind in [Kind::Classic, Kind::Quorum] {
        let (_admin, queue, proxy, mut consumer) = behind_proxy(kind, 300, 10).await;
        let acker = consumer.acker();
        let (old, before) = taken(&mut consumer, 300).await;
        proxy.cut();
        let cut = Instant::now();
        let (new, mut again) = taken(&mut consumer, 300).await;
        assert!(cut.elapsed() < Duration::from_secs(15), "it took {:?}", cut.elapsed());
        again.sort_by_key(|text| text.parse::<u32>().unwrap());
        assert_eq!(again, before);

        // The old numbers are the same as the new ones: on the wire these acks would take the new deliveries.
        assert_eq!(old.iter().map(|tag| tag.number).max(), new.iter().map(|tag| tag.number).max());
        settle(&*acker, &acks(old), Settled::TooLate).await;
        let broker = shared().await;
        until(Duration::from_secs(60), "300 are held", async || broker.depth(&queue) == (0, 300)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(broker.depth(&queue), (0, 300));
        settle(&*acker, &acks(new), Settled::Done).await;
        is_empty(&queue).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed_within_two_heartbeats() {
    let (admin, queue, proxy, mut consumer) = behind_proxy(Kind::Quorum, 5, 1).await;
    let acker = consumer.acker();
    let (old, _) = taken(&mut consumer, 5).await;
    proxy.half_open();
    admin.publish(&queue, ["later".to_owned()]).await;
    let broken = Instant::now();
    // The broker notices by itself too, and only then gives back what the dead connection held.
    let (new, _) = taken(&mut consumer, 6).await;
    assert!(broken.elapsed() < Duration::from_secs(15), "it took {:?}", broken.elapsed());
    settle(&*acker, &acks(old), Settled::TooLate).await;
    settle(&*acker, &acks(new), Settled::Done).await;
    is_empty(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_that_a_partition_swallowed_are_given_again_after_it_heals() {
    let (_admin, queue, proxy, mut consumer) = behind_proxy(Kind::Classic, 20, 1).await;
    let acker = consumer.acker();
    let (old, before) = taken(&mut consumer, 20).await;
    proxy.partition();
    // The client cannot know yet that these will not arrive.
    settle(&*acker, &acks(old), Settled::Done).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    proxy.heal();
    let (new, again) = taken(&mut consumer, 20).await;
    assert_eq!(again, before);
    settle(&*acker, &acks(new), Settled::Done).await;
    is_empty(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_and_declared_again_is_consumed_again() {
    for kind in [Kind::Classic, Kind::Quorum] {
        let broker = shared().await;
        let admin = Admin::connect(broker).await;
        let (queue, mut consumer) = consumer_of(broker, &admin, kind).await;
        let acker = consumer.acker();
        admin.publish(&queue, ["old".to_owned()]).await;
        let (old, _) = taken(&mut consumer, 1).await;
        admin.delete(&queue).await;
        // The broker cancels the consumer; the queue stays away long enough for attempts that fail.
        assert!(tokio::time::timeout(Duration::from_millis(600), consumer.receive()).await.is_err());
        admin.declare(&queue, kind).await;
        admin.publish(&queue, ["new".to_owned()]).await;
        let declared = Instant::now();
        let (new, texts) = taken(&mut consumer, 1).await;
        assert!(declared.elapsed() < Duration::from_secs(15), "it took {:?}", declared.elapsed());
        assert_eq!(texts, ["new"]);
        settle(&*acker, &acks(old), Settled::TooLate).await;
        settle(&*acker, &acks(new), Settled::Done).await;
        is_empty(&queue).await;
    }
}

/// Q04 and Q07: the broker closes the channel of a consumer that holds a delivery for too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_the_broker_closed_before_the_ack_is_replaced_and_the_ack_still_counts() {
    let broker = tokio::task::spawn_blocking(RabbitMq::start).await.unwrap();
    broker.set_consumer_timeout(Duration::from_millis(1500));
    broker.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 200)."]);
    let admin = Admin::connect(&broker).await;
    let (queue, mut consumer) = consumer_of(&broker, &admin, Kind::Quorum).await;
    let acker = consumer.acker();
    let health = consumer.health().unwrap();
    admin.publish(&queue, ["slow".to_owned()]).await;
    let (tags, _) = taken(&mut consumer, 1).await;
    // It is held all the time, so that it is not delivered once more.
    let receiving = tokio::spawn(async move { taken(&mut consumer, 1).await.1 });
    until(Duration::from_secs(60), "another channel", async || health.reconnects() > 0).await;
    settle(&*acker, &acks(tags), Settled::Done).await;
    until(Duration::from_secs(60), "the queue is empty", async || broker.depth(&queue) == (0, 0)).await;
    admin.publish(&queue, ["next".to_owned()]).await;
    assert_eq!(receiving.await.unwrap(), ["next"]);
}

/// An ack on a channel that is closed without the consumer having noticed: `Ok(false)` and errors are not acks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_on_a_channel_that_just_died_is_too_late() {
    let (_admin, queue, proxy, mut consumer) = behind_proxy(Kind::Classic, 1, 10).await;
    let acker = consumer.acker();
    let (old, _) = taken(&mut consumer, 1).await;
    proxy.cut();
    // No `receive` is pending, so the consumer does not know; the library notices the reset.
    tokio::time::sleep(Duration::from_millis(300)).await;
    settle(&*acker, &acks(old), Settled::TooLate).await;
    let (new, _) = taken(&mut consumer, 1).await;
    settle(&*acker, &acks(new), Settled::Done).await;
    is_empty(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_that_is_repeated_reaches_the_broker_once() {
    let (_admin, queue, proxy, mut consumer) = behind_proxy(Kind::Quorum, 3, 10).await;
    let acker = consumer.acker();
    let (tags, _) = taken(&mut consumer, 3).await;
    for _ in 0..3 {
        // A second frame for one tag would make the broker close the channel.
        settle(&*acker, &acks([tags[0], tags[2]]), Settled::Done).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    settle(&*acker, &acks([tags[1]]), Settled::Done).await;
    is_empty(&queue).await;
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_behind_a_held_message_arrives_though_the_other_is_not_settled() {
    let (_admin, queue, _proxy, mut consumer) = behind_proxy(Kind::Classic, 3, 10).await;
    let acker = consumer.acker();
    let (tags, _) = taken(&mut consumer, 3).await;
    settle(&*acker, &acks([tags[1], tags[2]]), Settled::Done).await;
    let broker = shared().await;
    until(Duration::from_secs(60), "one message is held", async || broker.depth(&queue) == (0, 1)).await;
    consumer.close().await.unwrap();
    until(Duration::from_secs(60), "it was given back", async || broker.depth(&queue) == (1, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_bounds_what_is_taken_ahead_also_after_a_cut() {
    let (_admin, queue, proxy, mut consumer) = behind_proxy(Kind::Classic, 0, 10).await;
    let broker = shared().await;
    drop(consumer);
    let admin = Admin::connect(broker).await;
    admin.publish(&queue, (0..100).map(|number| number.to_string())).await;
    let mut config = RabbitmqConfig::new(url(proxy.port()), &queue);
    config.queue.prefetch = 7;
    consumer = RabbitmqConsumer::open(config).await.unwrap();
    taken(&mut consumer, 7).await;
    proxy.cut();
    taken(&mut consumer, 7).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), consumer.receive()).await.is_err());
    assert_eq!(broker.depth(&queue), (93, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_borrowed_channel_that_dies_ends_the_source_with_an_error() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, ["1".to_owned(), "2".to_owned()]).await;
    let connection =
        lapin::Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut consumer =
        RabbitmqConsumer::from_channel(channel.clone(), RabbitmqQueueConfig::new(&queue)).await.unwrap();
    let (tags, _) = taken(&mut consumer, 2).await;
    channel.close(200, "bye".into()).await.unwrap();
    let error = consumer.receive().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(!error.is_retryable() && error.to_string().contains("from_client"));
    settle(&*consumer.acker(), &acks(tags), Settled::TooLate).await;
    assert_eq!(broker.depth(&queue), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_borrowed_channel_stays_open_and_others_deliveries_on_it_stay_theirs() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (own, others) = (unique("queue"), unique("queue"));
    for queue in [&own, &others] {
        admin.declare(queue, Kind::Classic).await;
        admin.publish(queue, (0..5).map(|number| number.to_string())).await;
    }
    let channel = admin.connection.create_channel().await.unwrap();
    let their_consumer =
        channel.basic_consume(others.as_str().into(), "".into(), Default::default(), Default::default());
    let _theirs = their_consumer.await.unwrap();
    let mut consumer =
        RabbitmqConsumer::from_channel(channel.clone(), RabbitmqQueueConfig::new(&own)).await.unwrap();
    let (tags, _) = taken(&mut consumer, 5).await;
    settle(&*consumer.acker(), &acks(tags), Settled::Done).await;
    consumer.close().await.unwrap();
    is_empty(&own).await;
    assert_eq!(broker.depth(&others), (0, 5));
    assert!(channel.status().connected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_must_mend_is_said_at_the_start() {
    let broker = shared().await;
    let url = broker.url();
    for (url, kind, hint) in [
        (url.clone(), ErrorKind::Config, "declare"),
        (url.replace("guest:guest", "guest:hunter2"), ErrorKind::Denied, "password"),
        (url.replace("%2f", "nowhere"), ErrorKind::Denied, "virtual host"),
        ("amqp://guest:hunter2@127.0.0.1:1/%2f".to_owned(), ErrorKind::Unavailable, "running"),
    ] {
        let error = RabbitmqConsumer::open(RabbitmqConfig::new(&url, "no-such-queue")).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{error:?}");
        let said = format!("{error:?}");
        assert!(said.contains(hint) && !said.contains("hunter2"), "{said}");
    }
    let empty = RabbitmqConfig::new(&url, "");
    assert_eq!(RabbitmqConsumer::open(empty).await.err().unwrap().kind(), ErrorKind::Config);
}

/// How many threads of the AMQP library run in this process.
fn library_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("lapin")).count()
}

#[test]
fn a_broker_that_accepts_and_says_nothing_is_given_up_and_leaves_no_thread_behind() {
    // In a process of its own, so that only its own threads are counted.
    let name = "reconnect::counts_threads_of_a_silent_broker";
    let this = std::env::current_exe().unwrap();
    let ended = std::process::Command::new(this).args([name, "--exact", "--ignored"]).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    assert!(String::from_utf8_lossy(&ended.stdout).contains("1 passed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above"]
async fn counts_threads_of_a_silent_broker() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut endpoint = RabbitmqEndpoint::new(url(listener.local_addr().unwrap().port()));
    endpoint.connect_timeout = Duration::from_millis(300);
    for _ in 0..3 {
        let error = RabbitmqPublisher::open(endpoint.clone()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    }
    assert!(listener.accept().is_ok());
    until(Duration::from_secs(60), "the threads ended", async || library_threads() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_single_active_consumer_queue_the_next_worker_goes_on_in_order() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    let single = [("x-single-active-consumer", AMQPValue::Boolean(true))];
    admin.declare_with(&queue, Kind::Quorum, &single).await;
    admin.publish(&queue, (0..50).map(|number| number.to_string())).await;
    let mut config = RabbitmqConfig::new(broker.url(), &queue);
    config.queue.single_active_consumer = true;
    let mut first = RabbitmqConsumer::open(config.clone()).await.unwrap();
    let mut second = RabbitmqConsumer::open(config).await.unwrap();
    assert!(first.capabilities().ordered);
    let (tags, texts) = taken(&mut first, 50).await;
    assert_eq!(texts, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
    settle(&*first.acker(), &acks(tags[..20].iter().copied()), Settled::Done).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), second.receive()).await.is_err());
    drop(first);
    let (tags, texts) = taken(&mut second, 30).await;
    assert_eq!(texts, (20..50).map(|number| number.to_string()).collect::<Vec<_>>());
    settle(&*second.acker(), &acks(tags), Settled::Done).await;
    is_empty(&queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_on_a_half_open_connection_does_not_wait_until_it_is_known_to_be_dead() {
    let (_admin, _queue, proxy, mut consumer) = behind_proxy(Kind::Classic, 5, 60).await;
    let acker = consumer.acker();
    let (tags, _) = taken(&mut consumer, 5).await;
    proxy.half_open();
    settle(&*acker, &acks(tags), Settled::Done).await;
    // The heartbeat would need two minutes.
    let closed = tokio::time::timeout(Duration::from_secs(60), consumer.close()).await;
    assert_eq!(closed.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
}
