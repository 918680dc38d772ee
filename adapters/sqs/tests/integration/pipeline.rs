//! Whole pipelines on a real server: long handlers, failing message groups, redriven letters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::MessageAttributeValue;
use bytes::Bytes;
use onceward::adapter::Consumer;
use onceward::pipeline::config::Ordering;
use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Outgoing, OwnHeaders, OwnSecrets,
    Pipeline, PipelineConfig, Publisher, Scope, handler_fn,
};
use onceward_sqs::{SqsConsumer, SqsPublisher};
use onceward_test_servers::elasticmq::ElasticMq;
use tokio_util::sync::CancellationToken;

use crate::support;

type Runs = Arc<Mutex<Vec<String>>>;

fn text(message: &Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s02_a_handler_of_three_times_the_visibility_runs_once() {
    async fn slow(runs: Runs, message: Message) -> Handled {
        runs.lock().unwrap().push(text(&message));
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(())
    }
    let client = support::client(ElasticMq::shared().port());
    let url = support::create(&client, "long").await;
    support::send(&client, &url, &["a".into(), "b".into()], |_| String::new()).await;
    let consumer = SqsConsumer::from_client(client.clone(), support::quick(&url)).await.unwrap();
    let runs = Runs::default();
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), slow))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    support::until(Duration::from_secs(20), "both are deleted", async || {
        runs.lock().unwrap().len() >= 2 && support::depth(&client, &url).await == (0, 0)
    })
    .await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.received(), summary.handled()), (2, 2));
    let mut runs = runs.lock().unwrap().clone();
    runs.sort();
    assert_eq!(runs, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_a_failure_holds_the_rest_of_its_group_and_no_other() {
    /// The second message of every fifth group fails twice.
    async fn flaky(runs: Runs, message: Message) -> Handled {
        let text = text(&message);
        let (group, number) = text.split_once('-').unwrap();
        if group.parse::<u32>().unwrap() % 5 == 0 && number == "1" && message.attempt() <= 2 {
            return Err(HandlerError::retry("not yet"));
        }
        runs.lock().unwrap().push(text);
        Ok(())
    }
    let client = support::client(ElasticMq::shared().port());
    let url = support::create(&client, "groups.fifo").await;
    let bodies: Vec<_> =
        (0..4).flat_map(|number| (0..50).map(move |group| format!("{group}-{number}"))).collect();
    support::send(&client, &url, &bodies, |at| format!("group-{}", at % 50)).await;
    let consumer = SqsConsumer::from_client(client.clone(), support::quick(&url)).await.unwrap();
    let runs = Runs::default();
    let config = PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .config(config)
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), flaky))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    support::until(Duration::from_secs(60), "all are deleted", async || {
        runs.lock().unwrap().len() >= bodies.len() && support::depth(&client, &url).await == (0, 0)
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
    let mut groups: HashMap<String, Vec<String>> = HashMap::new();
    for run in runs.lock().unwrap().iter() {
        let (group, number) = run.split_once('-').unwrap();
        groups.entry(group.to_owned()).or_default().push(number.to_owned());
    }
    assert_eq!(groups.len(), 50);
    for (group, numbers) in groups {
        assert_eq!(numbers, ["0", "1", "2", "3"], "group {group}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_received_with_all_headers_and_a_repeat_to_a_fifo_queue_is_one_message() {
    let client = support::client(ElasticMq::shared().port());
    for name in ["out", "out.fifo"] {
        let url = support::create(&client, name).await;
        let headers: Vec<_> =
            (0..15).map(|number| (format!("h-{number:02}"), Bytes::from(vec![number, 255]))).collect();
        let outgoing = |id: &str, payload: &'static [u8]| Outgoing {
            destination: url.clone(),
            id: id.into(),
            order_key: Some(Bytes::from_static(b"one")),
            headers: headers.clone(),
            payload: Bytes::from_static(payload),
            ..Outgoing::default()
        };
        let mut batch: Vec<_> =
            (0..12).map(|number| outgoing(&format!("id-{number:02}"), b"\xff\x00")).collect();
        batch.push(Outgoing { destination: format!("{url}-missing"), ..outgoing("lost", b"x") });
        let publisher = SqsPublisher::from_client(client.clone());
        let results = publisher.publish(&batch).await;
        assert!(results[..12].iter().all(Result::is_ok) && results[12].is_err(), "{results:?}");
        if name.ends_with(".fifo") {
            assert!(publisher.publish(&batch[..1]).await[0].is_ok());
            assert_eq!(support::depth(&client, &url).await, (12, 0));
        }
        let mut consumer = SqsConsumer::from_client(client.clone(), support::quick(&url)).await.unwrap();
        let received = consumer.receive().await.unwrap().unwrap();
        let message = &received[0].message;
        // Any sender can choose it.
        assert!(message.header("onceward-id").unwrap().starts_with(b"id-"));
        assert!(!message.id().unwrap().starts_with(b"id-"));
        assert_eq!(&message.payload()[..], b"\xff\x00");
        for (name, value) in &headers {
            assert_eq!(message.header(name), Some(value));
        }
        consumer.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_keeps_ten_attributes_and_is_a_redrive_when_a_hand_moves_it_back() {
    /// The first run fails for good.
    async fn once_bad(runs: Runs, message: Message) -> Handled {
        assert!((0..10).all(|number| message.header(&format!("h-{number}")).is_some()));
        runs.lock().unwrap().push(String::from_utf8(message.id().unwrap().to_vec()).unwrap());
        if runs.lock().unwrap().len() == 1 { Err(HandlerError::permanent("never")) } else { Ok(()) }
    }
    let client = support::client(ElasticMq::shared().port());
    let (url, dead) = (support::create(&client, "source").await, support::create(&client, "dead").await);
    let types =
        ["String", "Number", "Binary", "String.trace", "Number.float", "Binary.png", "String", "String"];
    let typed = |number: usize| {
        let data_type = types.get(number).copied().unwrap_or("String");
        let value = MessageAttributeValue::builder().data_type(data_type);
        let value = if data_type.starts_with("Binary") {
            value.binary_value(Blob::new(*b"17"))
        } else {
            value.string_value("17")
        };
        (format!("h-{number}"), value.build().unwrap())
    };
    let sent: HashMap<_, _> = (0..10).map(typed).collect();
    let send =
        client.send_message().queue_url(&url).message_body("a").set_message_attributes(Some(sent.clone()));
    let sent_id = send.send().await.unwrap().message_id.unwrap();
    let own_headers = OwnHeaders::authenticated(OwnSecrets::new(b"0123456789abcdef").unwrap());
    let mut queue = support::quick(&url);
    queue.own_headers = own_headers.clone();
    let consumer = SqsConsumer::from_client(client.clone(), queue).await.unwrap();
    let (runs, publisher) = (Runs::default(), SqsPublisher::from_client(client.clone()));
    let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::new(MemoryStore::new()))
        .config(PipelineConfig { own_headers, ..PipelineConfig::default() })
        .keys([KeySource::MessageId])
        .dead_letters(DeadLetters::new(Arc::new(publisher), dead.as_str()))
        .handler(handler_fn(Arc::clone(&runs), once_bad))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    let limit = Duration::from_secs(60);
    support::until(limit, "a letter", async || support::depth(&client, &dead).await == (1, 0)).await;

    // As SQS's own redrive moves it: body and attributes as they are, under another message id.
    let receive = client.receive_message().queue_url(&dead).message_attribute_names("All");
    let letter = receive.send().await.unwrap().messages.unwrap().remove(0);
    let attributes = letter.message_attributes.unwrap();
    assert_eq!(attributes.len(), 10, "{attributes:?}");
    // Nine are unchanged; the tenth was replaced by ours, which contains it with its type.
    let kept = sent.iter().filter(|(name, value)| attributes.get(*name) == Some(value)).count();
    assert_eq!(kept, 9, "{attributes:?}");
    let packed = attributes["onceward-headers"].string_value().unwrap();
    assert!(packed.contains("onceward-generation") && packed.contains("onceward-id"), "{packed}");
    assert!(!packed.contains("sqs-receive-count") && !packed.contains("sqs-sender-id"), "{packed}");
    let send = client.send_message().queue_url(&url).set_message_body(letter.body);
    send.set_message_attributes(Some(attributes)).send().await.unwrap();
    support::until(limit, "the second run", async || {
        runs.lock().unwrap().len() == 2 && support::depth(&client, &url).await == (0, 0)
    })
    .await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.dead_lettered(), summary.handled()), (1, 1));
    assert_eq!(
        *runs.lock().unwrap(),
        [sent_id.clone(), sent_id],
        "the id is the first one's, also after the redrive"
    );
}
