//! Limits of a broker: retry delays do not use up the delivery limit, and the documented rights are sufficient.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::types::AMQPValue;
use onceward::adapter::{Consumer, Settlement};
use onceward::retry::{Backoff, Jitter, RetryPolicy};
use onceward::{
    ErrorKind, Handled, HandlerError, KeySource, MemoryStore, Message, Outgoing, Pipeline, PipelineConfig,
    Publisher, Scope, handler_fn,
};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};

use crate::support::{Admin, Kind, shared, take, text, unique, until};

const FAILURES: u32 = 6;

/// Fails six times, then succeeds.
async fn handle(runs: Arc<AtomicU32>, _: Message) -> Handled {
    match runs.fetch_add(1, Ordering::SeqCst) {
        ..FAILURES => Err(HandlerError::retry("not yet")),
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_limit_below_the_attempts_is_not_used_up_by_waiting_here_or_in_the_broker() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    for wait_queues_from in [None, Some(Duration::from_millis(100))] {
        let queue = unique("queue");
        admin.declare_with(&queue, Kind::Quorum, &[("x-delivery-limit", AMQPValue::LongInt(2))]).await;
        admin.publish(&queue, ["1".to_owned()]).await;
        let mut config = RabbitmqConfig::new(broker.url(), &queue);
        config.queue.delivery_limit = Some(2);
        config.queue.wait_queues_from = wait_queues_from;
        let consumer = RabbitmqConsumer::open(config).await.unwrap();
        let backoff = Backoff {
            initial: Duration::from_millis(100),
            max: Duration::from_millis(100),
            jitter: Jitter::None,
        };
        let retry = RetryPolicy { max_attempts: FAILURES + 2, backoff };
        let runs = Arc::new(AtomicU32::new(0));
        let pipeline =
            Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
                .keys([KeySource::MessageId])
                .config(PipelineConfig { retry, ..PipelineConfig::default() })
                .park_exhausted()
                .handler(handler_fn(Arc::clone(&runs), handle))
                .unwrap();
        let shutdown = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(pipeline.run(shutdown.clone()));
        let handled = async || runs.load(Ordering::SeqCst) == FAILURES + 1 && broker.depth(&queue) == (0, 0);
        until(Duration::from_secs(60), "handled at last", handled).await;
        shutdown.cancel();
        assert_eq!(running.await.unwrap().unwrap().handled(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_that_are_documented_are_enough_and_missing_ones_are_named() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, dead, user) = (unique("queue"), unique("dead"), unique("worker"));
    admin.declare(&queue, Kind::Quorum).await;
    admin.declare(&dead, Kind::Quorum).await;
    admin.publish(&queue, ["1".to_owned()]).await;
    broker.ctl(&["add_user", &user, "secret"]);
    let allow = |configure: &str, write: &str, read: &str| {
        broker.ctl(&["set_permissions", "-p", "/", &user, configure, write, read]);
    };
    let url = broker.url().replace("guest:guest", &format!("{user}:secret"));
    let message = Outgoing { destination: dead.clone(), ..Outgoing::default() };

    allow("^$", "^$", &format!("^{queue}$"));
    let mut consumer = RabbitmqConsumer::open(RabbitmqConfig::new(&url, &queue)).await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "1");
    consumer.close().await.unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(&url)).await.unwrap();
    let refused = publisher.publish(std::slice::from_ref(&message)).await.pop().unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
    let mut waiting = RabbitmqConfig::new(&url, &queue);
    waiting.queue.wait_queues_from = Some(Duration::from_millis(100));
    let refused = RabbitmqConsumer::open(waiting.clone()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
    assert!(refused.to_string().contains(".wait.100ms"), "{refused}");

    let wait = format!("{queue}\\.wait\\..*");
    allow(&format!("^{wait}$"), "^amq\\.default$", &format!("^{queue}$|^{wait}$"));
    // A new channel checks the permissions again; an old one may have cached them.
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(&url)).await.unwrap();
    assert!(publisher.publish(&[message]).await[0].is_ok());
    assert_eq!(admin.drain(&dead).await.len(), 1);
    let mut consumer = RabbitmqConsumer::open(waiting).await.unwrap();
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    let first = delivery.tag;
    let retry = Settlement::Retry { after: Duration::from_millis(100) };
    assert!(consumer.acker().settle(&[(first, retry)]).await[0].is_ok());
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    // Through the broker: on the wire it is another delivery.
    assert_eq!((first.number, delivery.tag.number), (1, 2));
    assert!(consumer.acker().settle(&[(delivery.tag, Settlement::Ack)]).await[0].is_ok());
    until(Duration::from_secs(60), "the queue is empty", async || broker.depth(&queue) == (0, 0)).await;
}
