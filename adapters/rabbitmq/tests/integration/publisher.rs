//! The publisher on a real broker: confirmed, returned, refused, blocked, reconnected.

use std::time::{Duration, Instant};

use lapin::types::{AMQPValue, ShortString};
use onceward::{ErrorKind, Outgoing, Publisher};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::rabbitmq::{RabbitMq, url};

use crate::support::{self, Admin, Kind, outgoing, shared, unique};

/// The error of the only item.
async fn refusal(publisher: &RabbitmqPublisher, outgoing: Outgoing) -> onceward::Error {
    let mut results = publisher.publish(&[outgoing]).await;
    assert_eq!(results.len(), 1);
    results.pop().unwrap().unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_message_is_in_the_queue_persistent_and_with_all_it_had() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = unique("queue");
        admin.declare(&queue, kind).await;
        let mut batch: Vec<_> = (0..500).map(|number| outgoing(&queue, &number.to_string())).collect();
        batch[0].headers =
            vec![("tenant".into(), "a".into()), ("raw".into(), bytes::Bytes::from_static(b"\xff"))];
        assert!(publisher.publish(&batch).await.iter().all(Result::is_ok));
        let taken = admin.drain(&queue).await;
        let ids: Vec<_> =
            taken.iter().filter_map(|message| message.properties.message_id().clone()).collect();
        assert_eq!(ids, (0..500).map(|number| ShortString::from(number.to_string())).collect::<Vec<_>>());
        let first = &taken[0];
        assert_eq!((&first.data[..], first.properties.delivery_mode()), (&b"0"[..], &Some(2)));
        let headers = first.properties.headers().as_ref().unwrap().inner();
        assert_eq!(headers["raw"], AMQPValue::LongString(b"\xff"[..].into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_no_queue_takes_fails_in_a_batch() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let (queue, nowhere) = (unique("queue"), unique("nowhere"));
    admin.declare(&queue, Kind::Classic).await;
    let to = |number: usize| if number % 7 == 3 { &nowhere } else { &queue };
    let mut batch: Vec<_> = (0..200).map(|number| outgoing(to(number), &number.to_string())).collect();
    batch.push(outgoing("", "no address"));
    for _ in 0..5 {
        let results = publisher.publish(&batch).await;
        for (number, result) in results.iter().enumerate().take(200) {
            match result {
                Ok(()) => assert_eq!(to(number), &queue, "{number} was called published and is lost"),
                Err(error) => {
                    assert_eq!(to(number), &nowhere, "{number}: {error:?}");
                    assert!(error.to_string().contains("there is no queue nowhere"), "{error}");
                    assert!(error.is_retryable());
                }
            }
        }
        assert_eq!(results[200].as_ref().unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(admin.drain(&queue).await.len(), (0..200).filter(|number| to(*number) == &queue).count());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_does_not_exist_fails_and_the_next_batch_goes_on() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    let error = refusal(&publisher, outgoing("no-such-exchange/key", "1")).await;
    assert!(format!("{error:?}").contains("exchange"), "{error:?}");
    assert!(publisher.publish(&[outgoing(&queue, "2")]).await[0].is_ok());
    assert!(publisher.publish(&[outgoing(&format!("amq.direct/{queue}"), "3")]).await[0].is_err());
    let bind = admin.channel.queue_bind(
        queue.as_str().into(),
        "amq.direct".into(),
        queue.as_str().into(),
        Default::default(),
        Default::default(),
    );
    bind.await.unwrap();
    assert!(publisher.publish(&[outgoing(&format!("amq.direct/{queue}"), "4")]).await[0].is_ok());
    assert_eq!(admin.drain(&queue).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_that_rejects_is_an_error() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let queue = unique("queue");
    let full = [
        ("x-max-length", AMQPValue::LongInt(2)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    admin.declare_with(&queue, Kind::Classic, &full).await;
    let batch: Vec<_> = (0..5).map(|number| outgoing(&queue, &number.to_string())).collect();
    let results = publisher.publish(&batch).await;
    let kept = admin.drain(&queue).await.len();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), kept);
    assert!(
        kept < 5 && results.iter().flat_map(|result| result.as_ref().err()).all(|error| error.is_retryable())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_that_is_lost_is_unknown_and_the_publisher_comes_back() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(url(proxy.port()))).await.unwrap();
    let publisher = publisher.confirm_timeout(Duration::from_secs(3));
    assert!(publisher.publish(&[outgoing(&queue, "0")]).await[0].is_ok());
    proxy.drop_replies();
    let error = refusal(&publisher, outgoing(&queue, "1")).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    proxy.cut();
    assert!(publisher.publish(&[outgoing(&queue, "1")]).await[0].is_ok());
    // Both are there, under one message id: that is what "unknown" means.
    let ids: Vec<_> = admin
        .drain(&queue)
        .await
        .iter()
        .map(|message| message.properties.message_id().clone().unwrap())
        .collect();
    assert_eq!(ids, ["0", "1", "1"].map(ShortString::from));

    // Several times: for a moment a failed connection still appears to be open.
    for _ in 0..8 {
        proxy.refuse();
        assert!(refusal(&publisher, outgoing(&queue, "2")).await.is_retryable());
        proxy.heal();
        let again = publisher.publish(&[outgoing(&queue, "2")]).await;
        assert!(again[0].is_ok(), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_given_up_does_not_confuse_the_next() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, nowhere) = (unique("queue"), unique("nowhere"));
    admin.declare(&queue, Kind::Classic).await;
    let proxy = Proxy::start(broker.address()).unwrap();
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(url(proxy.port()))).await.unwrap();
    for round in 0..10 {
        // Its confirms and returns arrive when no caller waits for them any more.
        proxy.set(Direction::ToClient, Flow::Stall);
        let lost: Vec<_> = (0..20).map(|number| outgoing(&queue, &format!("lost {number}"))).collect();
        assert!(tokio::time::timeout(Duration::from_millis(20), publisher.publish(&lost)).await.is_err());
        proxy.heal();
        let next = [outgoing(&nowhere, &format!("{round}")), outgoing(&queue, &format!("kept {round}"))];
        let results = publisher.publish(&next).await;
        assert!(results[0].is_err() && results[1].is_ok(), "{results:?}");
    }
    let taken = admin.drain(&queue).await;
    assert_eq!(taken.iter().filter(|message| message.data.starts_with(b"kept")).count(), 10);
}

/// Q10: consuming continues, publishing waits for a bounded time and reports the cause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_a_memory_alarm_consuming_goes_on_and_publishing_waits_bounded() {
    let broker = tokio::task::spawn_blocking(RabbitMq::start).await.unwrap();
    let admin = Admin::connect(&broker).await;
    let (queue, mut consumer) = support::consumer_of(&broker, &admin, Kind::Classic).await;
    admin.publish(&queue, (0..10).map(|number| number.to_string())).await;
    let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
    let publisher = publisher.confirm_timeout(Duration::from_secs(1));
    assert!(publisher.publish(&[outgoing(&queue, "warm")]).await[0].is_ok());
    broker.memory_alarm(true);

    for attempt in 0..3 {
        let started = Instant::now();
        let error = refusal(&publisher, outgoing(&queue, "blocked")).await;
        assert!(started.elapsed() < Duration::from_secs(10), "it waited {:?}", started.elapsed());
        assert!(error.is_retryable());
        if attempt > 0 {
            assert!(error.to_string().contains("memory or disk alarm"), "{error}");
        }
    }
    let deliveries = support::take(&mut consumer, 11).await;
    let batch: Vec<_> =
        deliveries.iter().map(|delivery| (delivery.tag, onceward::adapter::Settlement::Ack)).collect();
    let acker = onceward::adapter::Consumer::acker(&consumer);
    assert!(acker.settle(&batch).await.iter().all(Result::is_ok));

    broker.memory_alarm(false);
    assert!(publisher.publish(&[outgoing(&queue, "free")]).await[0].is_ok());
    // What was sent before the broker said that it blocks arrives late; nothing was piled up beyond that.
    let texts: Vec<_> = support::take(&mut consumer, 2).await.iter().map(support::text).collect();
    assert_eq!(texts, ["blocked", "free"]);
}
