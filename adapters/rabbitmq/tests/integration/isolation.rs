//! Isolation: a message for which the broker closes the channel fails alone; its neighbours are published, at most
//! twice.

use std::collections::BTreeMap;

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_servers::rabbitmq::RabbitMq;

use crate::support::{self, Admin, Kind, outgoing, shared, unique};

/// 20 good messages, the poison, 20 good ones; answers the poison's error.
async fn round(publisher: &RabbitmqPublisher, queue: &str, poison: &Outgoing, number: u32) -> Error {
    let good = |from: u32| (from..from + 20).map(move |each| outgoing(queue, &format!("{number}-{each}")));
    let batch: Vec<_> = good(0).chain([poison.clone()]).chain(good(20)).collect();
    let mut results = publisher.publish(&batch).await;
    let error = results.remove(20).unwrap_err();
    for result in results {
        result.unwrap();
    }
    error
}

/// How often each message is in the queue, which is emptied.
async fn counts(admin: &Admin, queue: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for delivery in admin.drain(queue).await {
        *counts.entry(String::from_utf8(delivery.data).unwrap()).or_default() += 1;
    }
    counts
}

fn once(counts: &BTreeMap<String, usize>, rounds: usize) {
    assert_eq!(counts.len(), 40 * rounds);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_or_internal_exchange_harms_no_neighbour() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, internal) = (unique("queue"), unique("internal"));
    admin.declare(&queue, Kind::Classic).await;
    let options = ExchangeDeclareOptions { internal: true, ..Default::default() };
    admin
        .channel
        .exchange_declare(internal.as_str().into(), ExchangeKind::Topic, options, Default::default())
        .await
        .unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    for (poison, kind) in
        [("nowhere/k".to_owned(), ErrorKind::Config), (format!("{internal}/k"), ErrorKind::Denied)]
    {
        for number in 0..3 {
            let error = round(&publisher, &queue, &outgoing(&poison, "poison"), number).await;
            assert_eq!(error.kind(), kind, "{error:?}");
        }
        once(&counts(&admin, &queue).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_deleted_later_fails_alone_and_works_again_when_it_is_back() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, exchange) = (unique("queue"), unique("exchange"));
    admin.declare(&queue, Kind::Classic).await;
    let declare = async || {
        let (name, options) = (exchange.as_str().into(), Default::default());
        admin
            .channel
            .exchange_declare(name, ExchangeKind::Fanout, options, Default::default())
            .await
            .unwrap();
        let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
        admin
            .channel
            .queue_bind(queue, exchange, "".into(), Default::default(), Default::default())
            .await
            .unwrap();
    };
    declare().await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let there = outgoing(&format!("{exchange}/"), "there");
    assert!(publisher.publish(std::slice::from_ref(&there)).await[0].is_ok());
    admin.channel.exchange_delete(exchange.as_str().into(), Default::default()).await.unwrap();
    counts(&admin, &queue).await;
    round(&publisher, &queue, &there, 0).await;
    // What was under way with it may have gone out twice; that was once.
    assert_eq!(counts(&admin, &queue).await.len(), 40);
    for number in 1..4 {
        round(&publisher, &queue, &there, number).await;
    }
    once(&counts(&admin, &queue).await, 3);
    declare().await;
    support::until(std::time::Duration::from_secs(60), "published again", async || {
        publisher.publish(std::slice::from_ref(&there)).await[0].is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_without_the_right_to_it_harms_no_neighbour() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, user) = (unique("queue"), unique("writer"));
    admin.declare(&queue, Kind::Classic).await;
    broker.ctl(&["add_user", &user, "secret"]);
    broker.ctl(&["set_permissions", "-p", "/", &user, "^$", "^amq\\.default$", "^$"]);
    let url = broker.url().replace("guest:guest", &format!("{user}:secret"));
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(url)).await.unwrap();
    for number in 0..3 {
        let error = round(&publisher, &queue, &outgoing("amq.topic/k", "poison"), number).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    }
    once(&counts(&admin, &queue).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_beyond_the_brokers_limit_is_too_large_and_harms_its_neighbours_once_at_most() {
    let broker =
        tokio::task::spawn_blocking(|| RabbitMq::start_with("max_message_size = 10000", None)).await.unwrap();
    let admin = Admin::connect(&broker).await;
    admin.declare("queue", Kind::Classic).await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    for number in 0..4 {
        let poison = Outgoing { payload: vec![b'x'; 10_001].into(), ..outgoing("queue", "poison") };
        let error = round(&publisher, "queue", &poison, number).await;
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error:?}");
        assert!(!error.is_retryable() && error.to_string().contains("max_message_size"), "{error}");
        let counts = counts(&admin, "queue").await;
        match number {
            // The broker said it for the first time: what had been routed by then went out twice.
            0 => assert!(counts.len() == 40 && counts.values().all(|count| *count <= 2), "{counts:?}"),
            _ => once(&counts, 1),
        }
    }
}
