//! Fidelity: types, properties and message id are unchanged after a dead letter, a redrive, a delay queue and a copy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use onceward::adapter::{Consumer, Settlement};
use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Outgoing, OwnHeaders, OwnSecrets,
    Pipeline, Publisher, Scope, handler_fn,
};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};

use crate::support::{Admin, Kind, shared, take, unique, until};

/// A header of every type, and every property that a producer may set.
fn everything() -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut inner = FieldTable::default();
    inner.insert("x".into(), AMQPValue::LongInt(2));
    let array = vec![AMQPValue::LongInt(1), text("a"), AMQPValue::FieldTable(inner.clone()), AMQPValue::Void];
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("bool", AMQPValue::Boolean(true)),
        ("i8", AMQPValue::ShortShortInt(-5)),
        ("i16", AMQPValue::ShortInt(-300)),
        ("i32", AMQPValue::LongInt(5)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("f32", AMQPValue::Float(0.5)),
        ("f64", AMQPValue::Double(1.5)),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 1, value: 15 })),
        ("timestamp", AMQPValue::Timestamp(1_767_225_600)),
        ("array", AMQPValue::FieldArray(array.into())),
        ("table", AMQPValue::FieldTable(inner)),
        ("void", AMQPValue::Void),
        ("bytes", AMQPValue::ByteArray(b"\xff\x00"[..].into())),
        ("binary text", AMQPValue::LongString(b"\xff"[..].into())),
        ("text", text("tenant a")),
        ("empty", text("")),
    ] {
        headers.insert(name.into(), value);
    }
    BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_message_id("m-1".into())
        .with_timestamp(1_700_000_000)
        .with_type("order".into())
        .with_app_id("shop".into())
        .with_priority(3)
        .with_user_id("guest".into())
        .with_expiration("3600000".into())
}

/// What a copy keeps under another name: as properties these would delete the copy, or be refused.
const MOVED: [(&str, &str); 2] = [("amqp-expiration", "3600000"), ("amqp-user-id", "guest")];

/// The headers without ours, after a look at those that were moved.
fn headers(properties: &BasicProperties, moved: &[(&str, &str)]) -> BTreeMap<ShortString, AMQPValue> {
    let mut headers = properties.headers().clone().unwrap_or_default().inner().clone();
    headers.retain(|name, _| !name.as_str().starts_with("onceward-"));
    for (name, value) in moved {
        let found = headers.remove(*name);
        assert_eq!(found, Some(AMQPValue::LongString((*value).into())), "{name}");
    }
    headers
}

fn same(copy: &Delivery, moved: &[(&str, &str)]) {
    let original = everything();
    assert_eq!(copy.data, b"{}");
    assert_eq!(headers(&copy.properties, moved), headers(&original, &[]));
    let all = |properties: &BasicProperties| {
        let texts = [
            properties.content_type().clone(),
            properties.content_encoding().clone(),
            properties.correlation_id().clone(),
            properties.reply_to().clone(),
            properties.message_id().clone(),
            properties.kind().clone(),
            properties.app_id().clone(),
        ];
        (texts, *properties.timestamp(), *properties.priority(), *properties.delivery_mode())
    };
    assert_eq!(all(&copy.properties), all(&original));
}

async fn publish(admin: &Admin, queue: &str, properties: BasicProperties) {
    let sent = admin.channel.basic_publish("".into(), queue.into(), Default::default(), b"{}", properties);
    sent.await.unwrap().await.unwrap();
}

/// The only message of a queue, which is taken.
async fn only(admin: &Admin, queue: &str) -> Delivery {
    let mut taken = Vec::new();
    until(Duration::from_secs(60), queue, async || {
        taken.extend(admin.drain(queue).await);
        !taken.is_empty()
    })
    .await;
    assert_eq!(taken.len(), 1);
    taken.pop().unwrap()
}

fn own() -> OwnHeaders {
    OwnHeaders::authenticated(OwnSecrets::new(b"0123456789abcdef").unwrap())
}

async fn fail(_: (), _: Message) -> Handled {
    Err(HandlerError::permanent("not this one"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_with_every_type_is_the_same_after_a_dead_letter_a_redrive_and_a_copy() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, dead, target) = (unique("queue"), unique("dead"), unique("target"));
    for name in [&queue, &dead, &target] {
        admin.declare(name, Kind::Classic).await;
    }
    publish(&admin, &queue, everything()).await;
    let publisher =
        RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap().own_headers(own());
    let publisher = Arc::new(publisher);
    let mut config = RabbitmqConfig::new(broker.url(), &queue);
    config.queue.own_headers = own();
    let consumer = RabbitmqConsumer::open(config.clone()).await.unwrap();
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::clone(&publisher) as Arc<dyn Publisher>, dead.as_str()))
        .handler(handler_fn((), fail))
        .unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    let letter = only(&admin, &dead).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    same(&letter, &MOVED);
    assert_eq!((letter.properties.expiration(), letter.properties.user_id()), (&None, &None));
    let ours = letter.properties.headers().as_ref().unwrap().inner();
    assert!(ours.contains_key("onceward-reason") && ours.contains_key("onceward-id"), "{ours:?}");

    // An operator moves it back, unchanged.
    publish(&admin, &queue, letter.properties).await;
    let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    assert_eq!(delivery.message.id(), Some(&b"m-1"[..]));
    assert_eq!(delivery.message.content_type(), Some("application/json"));
    // As the publish handler does: headers as bytes, and the message in its own form.
    let headers = delivery.message.headers();
    let headers = headers.filter(|(name, _)| !name.starts_with("onceward-"));
    let copy = Outgoing {
        destination: target.clone(),
        own_id: "key-0".into(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.clone())).collect(),
        payload: delivery.message.payload().clone(),
        native: delivery.message.native().cloned(),
        ..Outgoing::default()
    };
    assert!(publisher.publish(&[copy]).await[0].is_ok());
    let copied = only(&admin, &target).await;
    same(&copied, &MOVED);
    let ours = copied.properties.headers().as_ref().unwrap().inner();
    assert_eq!(ours.get("onceward-id"), Some(&AMQPValue::LongString("key-0".into())));
    assert!(!ours.contains_key("onceward-reason"), "a stale header went along: {ours:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_with_every_type_is_the_same_after_a_wait_queue_and_a_dead_letter_behind_it() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, target) = (unique("queue"), unique("target"));
    admin.declare(&queue, Kind::Quorum).await;
    admin.declare(&target, Kind::Classic).await;
    publish(&admin, &queue, everything()).await;
    let mut config = RabbitmqConfig::new(broker.url(), &queue);
    config.queue.wait_queues_from = Some(Duration::from_millis(100));
    config.queue.own_headers = own();
    let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    let first = delivery.tag;
    let retry = Settlement::Retry { after: Duration::from_millis(100) };
    consumer.acker().settle(&[(first, retry)]).await;
    let delivery = take(&mut consumer, 1).await.pop().unwrap();
    assert_ne!(delivery.tag, first, "it waited in this process");
    assert!(delivery.message.header("x-death").is_some(), "it did not come from a wait queue");
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let headers = delivery.message.headers().map(|(name, value)| (name.to_owned(), value.clone()));
    let letter = Outgoing {
        destination: target.clone(),
        headers: headers.chain([("onceward-reason".to_owned(), "permanent".into())]).collect(),
        payload: delivery.message.payload().clone(),
        native: delivery.message.native().cloned(),
        ..Outgoing::default()
    };
    assert!(publisher.publish(&[letter]).await[0].is_ok());
    same(&only(&admin, &target).await, &MOVED);
}
