//! Replies to `reply_to` on a real broker: a requester that sends twice gets the same reply twice, and one effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use onceward::telemetry::Counter;
use onceward::{
    HandlerError, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope, Summary, handler_fn,
};
use onceward_rabbitmq::{
    RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher, RabbitmqReplies,
};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::rabbitmq::{RabbitMq, url};
use tokio_util::sync::CancellationToken;

use crate::support::{Admin, Kind, shared, unique, until};

const LIMIT: Duration = Duration::from_secs(60);

/// What each run returns: the number of the run, and the payload.
async fn answer(runs: Arc<AtomicUsize>, message: Message) -> Result<Vec<u8>, HandlerError> {
    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
    Ok([format!("run {run} of ").as_bytes(), message.payload()].concat())
}

struct Service {
    broker: &'static RabbitMq,
    admin: Admin,
    queue: String,
    replies: String,
    store: Arc<MemoryStore>,
    runs: Arc<AtomicUsize>,
}

/// A run of the service's pipeline.
struct Running {
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<Result<Summary, onceward::Error>>,
    counters: Arc<onceward::telemetry::Counters>,
}

impl Running {
    async fn end(self) -> Summary {
        self.shutdown.cancel();
        self.ended.await.unwrap().unwrap()
    }
}

impl Service {
    async fn new() -> Self {
        let broker = shared().await;
        let admin = Admin::connect(broker).await;
        let (queue, replies) = (unique("requests"), unique("replies"));
        admin.declare(&queue, Kind::Quorum).await;
        admin.declare(&replies, Kind::Classic).await;
        Self { broker, admin, queue, replies, store: Arc::default(), runs: Arc::default() }
    }

    async fn start(&self, scope: &str, max_result_bytes: usize, replies_at: &str) -> Running {
        let consumer =
            RabbitmqConsumer::open(RabbitmqConfig::new(self.broker.url(), &self.queue)).await.unwrap();
        let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(replies_at)).await.unwrap();
        let replies = RabbitmqReplies::new(publisher.confirm_timeout(Duration::from_secs(2)), &self.queue);
        let config = PipelineConfig { max_result_bytes, ..PipelineConfig::default() };
        let pipeline = Pipeline::builder(Scope::parse(scope).unwrap(), consumer, Arc::clone(&self.store))
            .config(config)
            .keys([KeySource::MessageId])
            .park_exhausted()
            .replies(Arc::new(replies))
            .handler(handler_fn(Arc::clone(&self.runs), answer))
            .unwrap();
        let (shutdown, counters) = (CancellationToken::new(), pipeline.counters());
        let ended = tokio::spawn(pipeline.run(shutdown.clone()));
        Running { shutdown, ended, counters }
    }

    async fn run(&self) -> Running {
        self.start("replies", 1024, &self.broker.url()).await
    }

    async fn request(&self, id: &str, correlation: &str, reply_to: &str) {
        let properties = BasicProperties::default()
            .with_message_id(id.into())
            .with_correlation_id(correlation.into())
            .with_reply_to(reply_to.into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let sent = self.admin.channel.basic_publish(
            "".into(),
            self.queue.as_str().into(),
            options,
            id.as_bytes(),
            properties,
        );
        assert!(matches!(sent.await.unwrap().await.unwrap(), lapin::Confirmation::Ack(None)));
    }

    /// The next `count` replies: correlation ids, payloads, and the headers.
    async fn replies(&self, count: usize) -> Vec<(String, String, FieldTable)> {
        let mut replies = Vec::new();
        until(LIMIT, "replies", async || {
            replies.extend(self.admin.drain(&self.replies).await);
            replies.len() >= count
        })
        .await;
        assert_eq!(replies.len(), count);
        let read = |delivery: lapin::message::Delivery| {
            let properties = &delivery.properties;
            let correlation = properties.correlation_id().as_ref().map(ToString::to_string);
            let headers = properties.headers().clone().unwrap_or_default();
            (correlation.unwrap_or_default(), String::from_utf8(delivery.data).unwrap(), headers)
        };
        replies.into_iter().map(read).collect()
    }

    async fn is_empty(&self) -> bool {
        let (broker, queue) = (self.broker, self.queue.clone());
        tokio::task::spawn_blocking(move || broker.depth(&queue)).await.unwrap() == (0, 0)
    }

    async fn settled(&self) {
        until(LIMIT, "an empty queue", async || self.is_empty().await).await;
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

fn own_id(headers: &FieldTable) -> Option<AMQPValue> {
    headers.inner().get("onceward-id").cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_that_sends_twice_gets_the_same_reply_twice_also_after_a_restart() {
    let service = Service::new().await;
    let running = service.run().await;
    service.request("pay 1", "one", &service.replies).await;
    let first = service.replies(1).await.remove(0);
    service.settled().await;
    running.end().await;
    let running = service.run().await;
    service.request("pay 1", "two", &service.replies).await;
    let second = service.replies(1).await.remove(0);
    service.settled().await;
    let summary = running.end().await;
    assert_eq!((first.0.as_str(), first.1.as_str()), ("one", "run 1 of pay 1"));
    assert_eq!((second.0.as_str(), second.1.as_str()), ("two", "run 1 of pay 1"));
    assert!(own_id(&first.2).is_some() && own_id(&first.2) == own_id(&second.2));
    assert_eq!((service.runs(), summary.duplicates()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_whose_queue_is_gone_or_is_the_source_is_counted_and_its_message_acked() {
    let service = Service::new().await;
    let running = service.run().await;
    service.request("gone", "1", "no-such-queue").await;
    service.request("back", "2", &service.queue).await;
    service.request("here", "3", &service.replies).await;
    assert!(service.replies(1).await[0].1.ends_with(" of here"));
    service.settled().await;
    let counters = Arc::clone(&running.counters);
    let summary = running.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), service.runs()), (3, 0, 3));
    assert_eq!(counters.get(Counter::RepliesUndeliverable), 2);
    assert_eq!(counters.get(Counter::Replies), 1);
}

/// Its requester does not read; others are not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_a_full_queue_refuses_is_sent_once_more_and_its_message_acked() {
    let service = Service::new().await;
    let full = unique("full");
    let rejecting = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    service.admin.declare_with(&full, Kind::Classic, &rejecting).await;
    service.admin.publish(&full, ["in the way".to_owned()]).await;
    let running = service.run().await;
    service.request("refused", "1", &full).await;
    service.request("here", "2", &service.replies).await;
    assert!(service.replies(1).await[0].1.ends_with(" of here"));
    service.settled().await;
    let counters = Arc::clone(&running.counters);
    let summary = running.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), service.runs()), (2, 0, 2));
    let count = |counter| counters.get(counter);
    assert_eq!((count(Counter::ReplyErrors), count(Counter::RepliesUndeliverable)), (1, 1));
    assert_eq!(service.admin.drain(&full).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_too_large_is_absent_from_each_reply_and_other_scopes_have_their_own() {
    let service = Service::new().await;
    let running = service.start("small", 8, &service.broker.url()).await;
    for correlation in ["one", "two"] {
        service.request("large", correlation, &service.replies).await;
        let (found, payload, headers) = service.replies(1).await.remove(0);
        assert_eq!((found.as_str(), payload.as_str()), (correlation, ""));
        let absent = AMQPValue::LongString("absent".into());
        assert_eq!(headers.inner().get("onceward-result"), Some(&absent));
    }
    service.settled().await;
    running.end().await;
    assert_eq!(service.runs(), 1);
    let running = service.start("other", 1024, &service.broker.url()).await;
    service.request("large", "three", &service.replies).await;
    assert_eq!(service.replies(1).await[0].1, "run 2 of large");
    service.settled().await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_at_the_direct_reply_queue_gets_its_replies() {
    let service = Service::new().await;
    let running = service.run().await;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consumed = service.admin.channel.basic_consume(
        "amq.rabbitmq.reply-to".into(),
        "requester".into(),
        options,
        FieldTable::default(),
    );
    let mut replies = consumed.await.unwrap();
    for correlation in ["one", "two"] {
        service.request("direct", correlation, "amq.rabbitmq.reply-to").await;
        let reply = tokio::time::timeout(LIMIT, replies.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(
            reply.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(),
            Some(correlation)
        );
        assert_eq!(reply.data, b"run 1 of direct");
    }
    service.settled().await;
    let counters = Arc::clone(&running.counters);
    running.end().await;
    assert_eq!((counters.get(Counter::Replies), counters.get(Counter::RepliesUndeliverable)), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_no_reply_can_be_sent_requests_are_kept_and_others_go_on() {
    let service = Service::new().await;
    let proxy = Proxy::start(service.broker.address()).unwrap();
    let running = service.start("cut-off", 1024, &url(proxy.port())).await;
    proxy.set(Direction::ToClient, Flow::Drop);
    service.request("asks", "one", &service.replies).await;
    service.admin.publish(&service.queue, ["asks nothing".to_owned()]).await;
    let counters = Arc::clone(&running.counters);
    until(LIMIT, "the other", async || counters.get(Counter::Handled) == 1).await;
    until(LIMIT, "a failed reply", async || counters.get(Counter::ReplyErrors) >= 1).await;
    assert!(!service.is_empty().await);
    proxy.heal();
    service.settled().await;
    let summary = running.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), service.runs()), (2, 0, 2));
    // At least once: those whose confirm was lost have arrived too.
    let replies = service.admin.drain(&service.replies).await;
    assert!(!replies.is_empty());
    let first = &replies[0].data;
    assert!(replies.iter().all(|reply| reply.data == *first && reply.data.ends_with(b"of asks")));
}
