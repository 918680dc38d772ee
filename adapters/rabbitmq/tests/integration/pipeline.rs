//! A pipeline over a real broker that is restarted, cut off and misconfigured: each effect once, nothing lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::telemetry::Counter;
use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope,
    handler_fn,
};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::{RabbitMq, url};

use crate::support::{Admin, Kind, unique, until};

/// How often each id had its effect.
type Effects = Arc<Mutex<BTreeMap<String, u32>>>;

async fn record(effects: Effects, message: Message) -> Handled {
    tokio::time::sleep(Duration::from_millis(10)).await;
    let id = String::from_utf8(message.id().unwrap().to_vec()).unwrap();
    *effects.lock().unwrap().entry(id).or_default() += 1;
    Ok(())
}

/// `count` ids, every third of them twice.
fn with_duplicates(count: usize) -> impl Iterator<Item = String> {
    (0..count).flat_map(|number| std::iter::repeat_n(number.to_string(), if number % 3 == 0 { 2 } else { 1 }))
}

fn pipeline(consumer: RabbitmqConsumer, effects: &Effects) -> Pipeline<onceward::Deduplicated> {
    let store = Arc::new(MemoryStore::new());
    let config = PipelineConfig { concurrency: 16, ..PipelineConfig::default() };
    let builder = Pipeline::builder(Scope::parse("test").unwrap(), consumer, store).config(config);
    builder
        .keys([KeySource::MessageId])
        .park_exhausted()
        .handler(handler_fn(Arc::clone(effects), record))
        .unwrap()
}

fn all_once(effects: &Effects, count: usize) {
    let effects = effects.lock().unwrap();
    let doubled: Vec<_> = effects.iter().filter(|(_, times)| **times != 1).collect();
    assert_eq!((effects.len(), doubled), (count, Vec::new()));
}

/// Q14: a kill, an orderly stop and another kill under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_restarted_under_load_loses_and_doubles_nothing() {
    const COUNT: usize = 10_000;
    let mut broker = tokio::task::spawn_blocking(RabbitMq::start).await.unwrap();
    let admin = Admin::connect(&broker).await;
    let mut runs = Vec::new();
    for (queue, kind) in [("classic", Kind::Classic), ("quorum", Kind::Quorum)] {
        admin.declare(queue, kind).await;
        admin.publish(queue, with_duplicates(COUNT)).await;
        let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), queue)).await.unwrap();
        let (effects, shutdown) = (Effects::default(), tokio_util::sync::CancellationToken::new());
        let running = tokio::spawn(pipeline(consumer, &effects).run(shutdown.clone()));
        runs.push((queue, effects, shutdown, running));
    }
    drop(admin);
    let done = |runs: &Vec<(_, Effects, _, _)>| -> usize {
        runs.iter().map(|(_, effects, _, _)| effects.lock().unwrap().len()).sum()
    };
    let mut last = vec![0; runs.len()];
    for round in 0..3 {
        // Both make progress again, and the broker has finished its recovery: RabbitMQ 3.10 may lose the log of a quorum
        // queue without replicas if it is killed during that.
        for ((_, effects, _, _), last) in runs.iter().zip(&mut last) {
            let goal = (*last + 300).min(COUNT);
            until(Duration::from_secs(60), "progress", async || effects.lock().unwrap().len() >= goal).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        broker = tokio::task::spawn_blocking(move || {
            if round % 2 == 0 {
                broker.kill()
            } else {
                broker.stop()
            }
            broker.start_again();
            broker
        })
        .await
        .unwrap();
        let (back, before) = (Instant::now(), done(&runs));
        assert!(before < COUNT * 2, "there was no load left to interrupt");
        until(Duration::from_secs(15), "going on", async || done(&runs) > before).await;
        last = runs.iter().map(|(_, effects, _, _)| effects.lock().unwrap().len()).collect();
        tracing::info!(after = ?back.elapsed(), at = ?last, "went on once the broker was back");
    }
    for (queue, effects, shutdown, running) in runs {
        let empty = async || effects.lock().unwrap().len() == COUNT && broker.depth(queue) == (0, 0);
        until(Duration::from_secs(60), "the queue is empty", empty).await;
        shutdown.cancel();
        let summary = running.await.unwrap().unwrap();
        all_once(&effects, COUNT);
        tracing::info!(queue, received = summary.received(), duplicates = summary.duplicates(), "done");
        assert!(summary.received() as usize >= COUNT * 4 / 3);
    }
}

/// Q01 through the whole pipeline, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_ten_times_loses_and_doubles_nothing() {
    const COUNT: usize = 3000;
    let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    admin.publish(&queue, with_duplicates(COUNT)).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(url(proxy.port()), &queue)).await.unwrap();
    let effects = Effects::default();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(pipeline(consumer, &effects).run(shutdown.clone()));
    for cut in 0..10 {
        let goal = COUNT * cut / 12;
        until(Duration::from_secs(60), "progress", async || effects.lock().unwrap().len() > goal).await;
        proxy.cut();
    }
    let empty = async || effects.lock().unwrap().len() == COUNT && broker.depth(&queue) == (0, 0);
    until(Duration::from_secs(30), "the queue is empty", empty).await;
    shutdown.cancel();
    let summary = running.await.unwrap().unwrap();
    all_once(&effects, COUNT);
    assert!(proxy.accepted() > 10);
    assert!(summary.counters().get(Counter::SettledTooLate) > 0, "no cut met a delivery in flight");
}

/// Q11: a dead letter that no queue takes leaves its message where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unroutable_dead_letter_keeps_its_message_unacked_until_the_queue_exists() {
    let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
    let admin = Admin::connect(broker).await;
    let (queue, dead) = (unique("queue"), unique("dead"));
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, ["poison".to_owned(), "good".to_owned()]).await;
    let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    async fn handle(runs: Effects, message: Message) -> Handled {
        let id = String::from_utf8(message.id().unwrap().to_vec()).unwrap();
        *runs.lock().unwrap().entry(id.clone()).or_default() += 1;
        if id == "poison" { Err(HandlerError::permanent("never")) } else { Ok(()) }
    }
    let runs = Effects::default();
    let store = Arc::new(MemoryStore::new());
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, store)
        .keys([KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::new(publisher), &dead))
        .handler(handler_fn(Arc::clone(&runs), handle))
        .unwrap();
    let counters = pipeline.counters();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));

    let refused = async || counters.get(Counter::DeadLetterErrors) >= 3;
    until(Duration::from_secs(60), "the letter was returned three times", refused).await;
    assert_eq!(broker.depth(&queue), (0, 1));
    assert_eq!(counters.get(Counter::DeadLettered), 0);

    admin.declare(&dead, Kind::Quorum).await;
    let empty = async || broker.depth(&queue) == (0, 0);
    until(Duration::from_secs(60), "the letter was taken and its message acked", empty).await;
    shutdown.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 1));
    all_once(&runs, 2);
    let letters = admin.drain(&dead).await;
    assert!(letters.len() == 1 && letters[0].data == b"poison");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_borrowed_channel_that_dies_ends_the_run_with_an_error() {
    let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    let channel = admin.connection.create_channel().await.unwrap();
    let queue = onceward_rabbitmq::RabbitmqQueueConfig::new(&queue);
    let consumer = RabbitmqConsumer::from_channel(channel.clone(), queue).await.unwrap();
    let effects = Effects::default();
    let running = tokio::spawn(pipeline(consumer, &effects).run(Default::default()));
    until(Duration::from_secs(60), "the effect", async || effects.lock().unwrap().len() == 1).await;
    channel.close(200, "bye".into()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().kind(), onceward::ErrorKind::Unsupported);
}
