//! The broker's ack timeout: messages are returned once before it expires, which the pipeline does not notice.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::adapter::{Consumer, Settled, Settlement, Tag};
use onceward::telemetry::Counter;
use onceward::{Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::{RabbitMq, url};
use support::{Admin, Kind, take, text, until};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// A broker that closes a channel whose deliveries are held for longer than `timeout`, and looks often.
async fn strict(timeout: Duration) -> RabbitMq {
    // Before anything else sets up a log.
    let _ = tracing_subscriber::registry().with(Warnings).try_init();
    tokio::task::spawn_blocking(move || {
        let broker = RabbitMq::start();
        broker.set_consumer_timeout(timeout);
        broker.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]);
        broker
    })
    .await
    .unwrap()
}

async fn settle(consumer: &RabbitmqConsumer, tags: &[Tag], settlement: Settlement) {
    let batch: Vec<_> = tags.iter().map(|tag| (*tag, settlement)).collect();
    for result in consumer.acker().settle(&batch).await {
        assert_eq!(result.unwrap(), Settled::Done);
    }
}

async fn taken(consumer: &mut RabbitmqConsumer, count: usize) -> (Vec<Tag>, Vec<String>) {
    let deliveries = take(consumer, count).await;
    deliveries.iter().map(|delivery| (delivery.tag, text(delivery))).unzip()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_beyond_the_timeout_is_given_back_alone_and_keeps_its_delivery() {
    let broker = strict(Duration::from_secs(6)).await;
    let admin = Admin::connect(&broker).await;
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = support::unique("queue");
        admin.declare(&queue, kind).await;
        admin.publish(&queue, ["held".to_owned(), "short".to_owned()]).await;
        let proxy = Proxy::start(broker.address()).unwrap();
        let mut config = RabbitmqConfig::new(url(proxy.port()), &queue);
        config.queue.ack_timeout = Some(Duration::from_secs(6));
        let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
        let acker = consumer.acker();
        let health = consumer.health().unwrap();
        let (tags, _) = taken(&mut consumer, 2).await;
        settle(&consumer, &tags[1..], Settlement::Ack).await;
        // Others come and go meanwhile, on the same channel.
        let (done, mut stop) = tokio::sync::oneshot::channel();
        let working = tokio::spawn(async move {
            let mut texts = Vec::new();
            loop {
                tokio::select! {
                    _ = &mut stop => return texts,
                    received = consumer.receive() => {
                        let deliveries = received.unwrap().unwrap();
                        texts.extend(deliveries.iter().map(text));
                        let batch: Vec<_> =
                            deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
                        consumer.acker().settle(&batch).await;
                    }
                }
            }
        });
        let expected: Vec<_> = (0..32).map(|number| number.to_string()).collect();
        for number in &expected {
            admin.publish(&queue, [number.clone()]).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(acker.settle(&[(tags[0], Settlement::Ack)]).await[0].as_ref().unwrap(), &Settled::Done);
        until(Duration::from_secs(60), "the queue is empty", async || broker.depth(&queue) == (0, 0)).await;
        done.send(()).unwrap();
        assert_eq!(working.await.unwrap(), expected, "{kind:?}: the held message came once more");
        assert_eq!((proxy.accepted(), health.reconnects()), (1, 0), "{kind:?}: the channel was closed");
    }
}

/// As while the store is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nobody_receives_all_goes_back_once_and_returns_to_the_next_call() {
    let broker = strict(Duration::from_secs(60)).await;
    let admin = Admin::connect(&broker).await;
    admin.declare("queue", Kind::Quorum).await;
    admin.publish("queue", (0..10).map(|number| number.to_string())).await;
    let mut config = RabbitmqConfig::new(broker.url(), "queue");
    config.queue.ack_timeout = Some(Duration::from_secs(4));
    let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
    let (tags, _) = taken(&mut consumer, 10).await;
    admin.publish("queue", (10..15).map(|number| number.to_string())).await;
    let depth = async || broker.depth("queue");
    until(Duration::from_secs(60), "all are back", async || depth().await == (15, 0)).await;
    // They are not taken again, however long that lasts.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(depth().await, (15, 0));
    let (others, mut texts) = taken(&mut consumer, 5).await;
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(texts, ["10", "11", "12", "13", "14"], "what is held was delivered once more");
    settle(&consumer, &tags, Settlement::Ack).await;
    settle(&consumer, &others, Settlement::Ack).await;
    until(Duration::from_secs(60), "the queue is empty", async || depth().await == (0, 0)).await;
}

/// Collects warnings and errors of ours.
struct Warnings;

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Words(String);

impl tracing::field::Visit for Words {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        if meta.target().starts_with("onceward_rabbitmq") && *meta.level() <= tracing::Level::WARN {
            let mut words = Words(String::new());
            event.record(&mut words);
            WARNINGS.lock().unwrap().push(words.0);
        }
    }
}

/// `long` waits 20 s for its second attempt.
async fn handle(runs: Arc<Mutex<BTreeMap<String, usize>>>, message: Message) -> Handled {
    let id = String::from_utf8(message.id().unwrap().to_vec()).unwrap();
    let run = {
        let mut runs = runs.lock().unwrap();
        let run = runs.entry(id.clone()).or_default();
        *run += 1;
        *run
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    match run {
        1 if id == "long" => Err(HandlerError::retry_after(Duration::from_secs(20), "later")),
        _ => Ok(()),
    }
}

/// The broker's timeout is not known to the consumer: it learns it from the first closed channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_long_retry_among_two_hundred_messages_costs_one_warning_and_few_deliveries() {
    const COUNT: usize = 200;
    let broker = strict(Duration::from_secs(5)).await;
    let admin = Admin::connect(&broker).await;
    admin.declare("orders", Kind::Quorum).await;
    let ids = ["long".to_owned()].into_iter().chain((1..COUNT).map(|number| number.to_string()));
    admin.publish("orders", ids).await;
    let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), "orders")).await.unwrap();
    let runs = Arc::new(Mutex::new(BTreeMap::new()));
    let store = Arc::new(MemoryStore::new());
    let config = onceward::PipelineConfig { concurrency: 2, ..Default::default() };
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, store)
        .keys([KeySource::MessageId])
        .config(config)
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), handle))
        .unwrap();
    let counters = pipeline.counters();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    let handled = AtomicUsize::new(0);
    until(Duration::from_secs(180), "all handled", async || {
        handled.store(runs.lock().unwrap().values().sum(), Ordering::Relaxed);
        handled.load(Ordering::Relaxed) == COUNT + 1 && broker.depth("orders") == (0, 0)
    })
    .await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let runs = runs.lock().unwrap();
    assert!(runs.iter().all(|(id, runs)| *runs == if id == "long" { 2 } else { 1 }), "{runs:?}");
    let received = counters.get(Counter::Received);
    assert!(received <= 2 * COUNT as u64, "{received} deliveries");
    let warnings = WARNINGS.lock().unwrap();
    let of_queue: Vec<_> = warnings.iter().filter(|line| line.contains("orders")).collect();
    assert!(of_queue.len() == 1 && of_queue[0].contains("consumer_timeout"), "{of_queue:?}");
}
