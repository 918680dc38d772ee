//! Malformed and very large messages: each has a defined outcome, and its neighbours are unaffected.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::types::AMQPValue;
use onceward::adapter::{Consumer, Defect, Settlement};
use onceward::dead_letter::HEADER_REASON;
use onceward::telemetry::Counter;
use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, PipelineConfig, Scope,
    handler_fn,
};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};

use crate::support::{Admin, Kind, consumer_of, hostile, shared, take, text, unique, until};

/// All known hostile messages, with the expected defect of each.
fn hostile_messages() -> Vec<(hostile::Properties, &'static str)> {
    let bomb: Vec<u8> =
        (0..10_000_u32).flat_map(|number| hostile::field(number.to_string().as_bytes(), b"")).collect();
    vec![
        (hostile::message_id(b"\xff\xfe"), "the message id is not UTF-8"),
        (hostile::headers(&hostile::field(b"name \xff", b"value")), "the name of a header is not UTF-8"),
        (hostile::nested(33), "its headers are nested more than 32 deep"),
        (hostile::nested(1000), "its headers are nested more than 32 deep"),
        (hostile::nested(26_000), "its headers are nested more than 32 deep"),
        (hostile::nested(32), ""),
        (hostile::headers(&bomb), ""),
        (hostile::headers(&hostile::field(b"value", b"\xff\x00\xfe")), ""),
    ]
}

fn defect(message: &Message) -> String {
    match message.defect() {
        Some(Defect::Malformed { what }) => what.clone(),
        Some(other) => panic!("{other}"),
        None => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_are_delivered_with_their_defects_between_good_ones() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    for kind in [Kind::Classic, Kind::Quorum] {
        let (queue, mut consumer) = consumer_of(broker, &admin, kind).await;
        let mut expected = Vec::new();
        for (number, (properties, what)) in hostile_messages().into_iter().enumerate() {
            admin.publish(&queue, [format!("good {number}")]).await;
            hostile::publish(broker.port(), &queue, &properties, format!("hostile {number}").as_bytes());
            expected.extend([(format!("good {number}"), ""), (format!("hostile {number}"), what)]);
        }
        let deliveries = take(&mut consumer, expected.len()).await;
        let found: Vec<_> =
            deliveries.iter().map(|delivery| (text(delivery), defect(&delivery.message))).collect();
        let expected: Vec<_> = expected.into_iter().map(|(text, what)| (text, what.to_owned())).collect();
        assert_eq!(found, expected);
        assert_eq!(deliveries[13].message.headers().len(), 10_000);
        assert_eq!(deliveries[15].message.header("value").unwrap(), &b"\xff\x00\xfe"[..]);
        let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
        assert!(consumer.acker().settle(&batch).await.iter().all(Result::is_ok));
        until(Duration::from_secs(60), "the queue is empty", async || broker.depth(&queue) == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_end_as_dead_letters_and_the_others_are_handled() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, dead) = (unique("queue"), unique("dead"));
    admin.declare(&queue, Kind::Classic).await;
    admin.declare(&dead, Kind::Quorum).await;
    for (number, (properties, _)) in hostile_messages().into_iter().enumerate() {
        admin.publish(&queue, [format!("good {number}")]).await;
        hostile::publish(broker.port(), &queue, &properties, format!("hostile {number}").as_bytes());
    }
    let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let handled = Arc::new(Mutex::new(Vec::new()));
    async fn handle(handled: Arc<Mutex<Vec<String>>>, message: Message) -> Handled {
        handled.lock().unwrap().push(String::from_utf8(message.payload().to_vec()).unwrap());
        Ok(())
    }
    let config = PipelineConfig { until_idle: true, ..PipelineConfig::default() };
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::new(publisher), &dead))
        .config(config)
        .handler(handler_fn(Arc::clone(&handled), handle))
        .unwrap();
    let run = tokio::time::timeout(Duration::from_secs(30), pipeline.run(Default::default()));
    let summary = run.await.unwrap().unwrap();
    // Five have a defect, three merely no message id: none of them stops the others or is lost.
    assert_eq!((summary.handled(), summary.dead_lettered()), (8, 8));
    let mut good = handled.lock().unwrap().clone();
    good.sort();
    assert_eq!(good, (0..8).map(|number| format!("good {number}")).collect::<Vec<_>>());
    let letters = admin.drain(&dead).await;
    let mut payloads: Vec<_> =
        letters.iter().map(|letter| String::from_utf8(letter.data.clone()).unwrap()).collect();
    payloads.sort();
    assert_eq!(payloads, (0..8).map(|number| format!("hostile {number}")).collect::<Vec<_>>());
    for letter in &letters {
        let headers = letter.properties.headers().as_ref().unwrap().inner();
        assert!(matches!(headers.get(HEADER_REASON), Some(AMQPValue::LongString(_))), "{:?}", headers.keys());
    }
    // With our own headers the header bomb no longer fits into a frame: the headers that were dropped are counted.
    let bomb = letters.iter().find(|letter| letter.data == b"hostile 6").unwrap();
    assert!(bomb.properties.headers().as_ref().unwrap().inner().len() > 9_000);
    until(Duration::from_secs(60), "the queue is empty", async || broker.depth(&queue) == (0, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_of_32_mb_passes_and_its_neighbours_too() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, dead) = (unique("queue"), unique("dead"));
    admin.declare(&queue, Kind::Classic).await;
    admin.declare(&dead, Kind::Classic).await;
    let large = vec![0xa5_u8; 32 << 20];
    admin.publish(&queue, ["before".to_owned()]).await;
    hostile::publish(broker.port(), &queue, &hostile::message_id(b"large"), &large);
    admin.publish(&queue, ["after".to_owned()]).await;
    let consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    async fn handle(seen: Arc<Mutex<Vec<usize>>>, message: Message) -> Handled {
        seen.lock().unwrap().push(message.payload().len());
        match message.payload().len() {
            ..100 => Ok(()),
            _ => Err(HandlerError::permanent("too large for me")),
        }
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let config = PipelineConfig { until_idle: true, ..PipelineConfig::default() };
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::new(publisher), &dead))
        .config(config)
        .handler(handler_fn(Arc::clone(&seen), handle))
        .unwrap();
    let run = tokio::time::timeout(Duration::from_secs(60), pipeline.run(Default::default()));
    let summary = run.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 1));
    assert_eq!(summary.counters().get(Counter::DeadLetterErrors), 0);
    let letters = admin.drain(&dead).await;
    assert!(letters.len() == 1 && letters[0].data == large);
}
