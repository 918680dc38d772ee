//! Whole pipelines on a real server: long handlers, failing ordering keys, letters and their headers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use google_cloud_pubsub::model::Message as Published;
use onceward::adapter::Consumer;
use onceward::pipeline::config::Ordering;
use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Outgoing, OwnHeaders, Pipeline,
    PipelineConfig, Publisher, Scope, handler_fn,
};
use onceward_pubsub::{PubsubConsumer, PubsubPublisher};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Place};

type Runs = Arc<Mutex<Vec<String>>>;

const LONG: Duration = Duration::from_secs(120);

fn text(message: &Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

fn scope() -> Scope {
    Scope::parse("test").unwrap()
}

/// One and a half ack deadlines, or with `SLOW=1` six and a half.
fn longer_than_the_deadline() -> Duration {
    let is_slow = std::env::var("SLOW").is_ok_and(|slow| slow == "1");
    Duration::from_secs(if is_slow { 65 } else { 15 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_outlasts_the_ack_deadline_runs_once() {
    async fn slow(runs: Runs, message: Message) -> Handled {
        runs.lock().unwrap().push(text(&message));
        tokio::time::sleep(longer_than_the_deadline()).await;
        Ok(())
    }
    let places = [false, true]
        .map(|exactly_once| Place::create("long", &json!({"enableExactlyOnceDelivery": exactly_once})));
    let mut running = Vec::new();
    let (runs, stop) = (Runs::default(), CancellationToken::new());
    for place in &places {
        place.publish(["a", "b"].map(|data| Published::new().set_data(data))).await;
        let consumer = PubsubConsumer::open(place.config()).await.unwrap();
        let config = PipelineConfig { handler_timeout: LONG, ..PipelineConfig::default() };
        let pipeline = Pipeline::builder(scope(), consumer, Arc::new(MemoryStore::new()))
            .keys([KeySource::MessageId])
            .config(config)
            .park_exhausted()
            .handler(handler_fn(Arc::clone(&runs), slow))
            .unwrap();
        running.push(tokio::spawn(pipeline.run(stop.clone())));
    }
    support::until(LONG, "all are acked", || {
        runs.lock().unwrap().len() >= 4 && places.iter().all(Place::is_empty)
    })
    .await;
    stop.cancel();
    for running in running {
        let summary = running.await.unwrap().unwrap();
        assert_eq!((summary.received(), summary.handled()), (2, 2));
    }
    let mut runs = runs.lock().unwrap().clone();
    runs.sort();
    assert_eq!(runs, ["a", "a", "b", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_holds_the_rest_of_its_ordering_key_and_no_other() {
    /// The second message of every fifth key fails twice.
    async fn flaky(runs: Runs, message: Message) -> Handled {
        let text = text(&message);
        let (key, number) = text.split_once('-').unwrap();
        if key.parse::<u32>().unwrap() % 5 == 0 && number == "1" && message.attempt() <= 2 {
            return Err(HandlerError::retry("not yet"));
        }
        runs.lock().unwrap().push(text);
        Ok(())
    }
    let place = Place::create("keys", &json!({"enableMessageOrdering": true}));
    let bodies = (0..4).flat_map(|number| (0..50).map(move |key| (key, number)));
    let message = |(key, number): (u32, u32)| {
        Published::new().set_data(format!("{key}-{number}")).set_ordering_key(format!("key-{key}"))
    };
    place.publish(bodies.map(message)).await;
    let mut config = place.config();
    config.subscription.ordered = true;
    let consumer = PubsubConsumer::open(config).await.unwrap();
    assert!(consumer.capabilities().ordered);
    let runs = Runs::default();
    let config = PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
    let pipeline = Pipeline::builder(scope(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .config(config)
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), flaky))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    support::until(LONG, "all are acked", || runs.lock().unwrap().len() >= 200 && place.is_empty()).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    let mut keys: HashMap<String, Vec<String>> = HashMap::new();
    for run in runs.lock().unwrap().iter() {
        let (key, number) = run.split_once('-').unwrap();
        keys.entry(key.to_owned()).or_default().push(number.to_owned());
    }
    assert_eq!(keys.len(), 50);
    for (key, numbers) in keys {
        assert_eq!(numbers, ["0", "1", "2", "3"], "key {key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_received_with_all_headers() {
    let place = Place::create("out", &json!({}));
    let mut headers: Vec<_> =
        (0..120_u8).map(|number| (format!("h-{number:03}"), Bytes::from(vec![number, 255]))).collect();
    headers.push(("goog-reserved".into(), Bytes::from_static(b"text")));
    headers.push(("long".into(), vec![b'l'; 5_000].into()));
    headers.push(("h-000".into(), Bytes::from_static(b"again")));
    let outgoing = |id: &str, payload: &'static [u8]| Outgoing {
        destination: place.topic.clone(),
        id: id.into(),
        order_key: Some(Bytes::from_static(b"one")),
        headers: headers.clone(),
        payload: Bytes::from_static(payload),
        ..Outgoing::default()
    };
    let mut batch: Vec<_> = (0..12).map(|number| outgoing(&format!("id-{number:02}"), b"\xff\x00")).collect();
    batch.push(outgoing("id-12", b""));
    let publisher = PubsubPublisher::open(support::endpoint(place.server)).await.unwrap();
    for result in publisher.publish(&batch).await {
        result.unwrap();
    }
    let mut config = place.config();
    config.subscription.own_headers = OwnHeaders::trusted();
    let mut consumer = PubsubConsumer::open(config).await.unwrap();
    let mut received = Vec::new();
    while received.len() < batch.len() {
        let batch = tokio::time::timeout(LONG, consumer.receive()).await.unwrap().unwrap().unwrap();
        received.extend(batch.into_iter().map(|delivery| delivery.message));
    }
    received.sort_by_key(|message| message.id().map(<[u8]>::to_vec));
    for (message, sent) in received.iter().zip(&batch) {
        assert_eq!(message.id(), Some(sent.id.as_bytes()));
        assert_eq!((message.payload(), message.order_key()), (&sent.payload, sent.order_key.as_ref()));
        assert_eq!(message.header("pubsub-ordering-key").map(|key| &key[..]), Some(&b"one"[..]));
        assert!(message.timestamp().is_some() && message.header("pubsub-publish-time").is_some());
        let is_ours = |name: &str| !name.starts_with("pubsub-") && !name.starts_with("onceward-");
        let back = message.headers().filter(|(name, _)| is_ours(name));
        let mut back: Vec<_> = back.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let mut expected = headers.clone();
        back.sort();
        expected.sort();
        assert_eq!(back, expected);
    }
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_the_message_as_it_was() {
    async fn fail(_: (), _: Message) -> Handled {
        Err(HandlerError::permanent("never"))
    }
    let (place, dead) = (Place::create("ill", &json!({})), Place::create("dead", &json!({})));
    let message = Published::new().set_data("order").set_ordering_key("k").set_attributes([("a", "1")]);
    place.publish([message]).await;
    let publisher = PubsubPublisher::open(support::endpoint(place.server)).await.unwrap();
    let consumer = PubsubConsumer::open(place.config()).await.unwrap();
    let pipeline = Pipeline::builder(scope(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::new(publisher), dead.topic.clone()))
        .handler(handler_fn((), fail))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    let mut config = dead.config();
    config.subscription.own_headers = OwnHeaders::trusted();
    let mut letters = PubsubConsumer::open(config).await.unwrap();
    let letter =
        tokio::time::timeout(LONG, letters.receive()).await.unwrap().unwrap().unwrap().remove(0).message;
    support::until(LONG, "the message is acked", || place.is_empty()).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!((text(&letter), letter.order_key()), ("order".to_owned(), Some(&Bytes::from_static(b"k"))));
    assert_eq!(letter.header("a"), Some(&Bytes::from_static(b"1")));
    let original = place.server.delivered(&place.subscription).remove(0).id;
    assert_eq!(letter.id(), Some(original.as_bytes()));
    letters.close().await.unwrap();
}
