//! Persistent failures: they are visible, cheap, and named.

use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settled, Settlement};
use onceward::telemetry::SourceState;
use onceward::{Error, Outgoing, Publisher};
use onceward_sqs::{SqsConsumer, SqsPublisher, SqsQueueStatus};
use serde_json::json;

use crate::support::{
    self, bodies,
    fake::{FakeSqs, Fault},
    patient, until,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_that_always_fail_are_asked_for_ever_less_often_and_done_once_they_work() {
    let fake = FakeSqs::start(|action, _| {
        (action == "DeleteMessageBatch").then_some(Fault::Refuse(500, "InternalFailure"))
    })
    .await;
    fake.fill(bodies(20));
    let mut consumer = SqsConsumer::from_client(fake.client(), patient(&fake)).await.unwrap();
    let (acker, mut tags) = (consumer.acker(), Vec::new());
    while tags.len() < 20 {
        let deliveries = consumer.receive().await.unwrap().unwrap();
        tags.extend(deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)));
    }
    // As the pipeline repeats them, only faster.
    let started = Instant::now();
    let mut rounds = 0;
    while started.elapsed() < Duration::from_secs(10) {
        let answers = acker.settle(&tags).await;
        assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(Error::is_retryable)), "{answers:?}");
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The SDK repeats each call three times.
    let calls = fake.calls("DeleteMessageBatch");
    assert!(rounds > 50 && calls <= 60, "{calls} calls in {rounds} rounds");
    fake.plan(|_, _| None);
    until(PATIENCE, "all are deleted", async || {
        acker.settle(&tags).await;
        fake.left() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_sqs_refuses_for_another_reason_than_the_handle_is_an_error() {
    let fake = FakeSqs::start(|action, _| {
        (action == "DeleteMessageBatch").then_some(Fault::HalfFails("InvalidParameterValue"))
    })
    .await;
    fake.fill(bodies(10));
    let mut consumer = SqsConsumer::from_client(fake.client(), patient(&fake)).await.unwrap();
    let deliveries = consumer.receive().await.unwrap().unwrap();
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
    let answers = consumer.acker().settle(&batch).await;
    let errors = answers.iter().filter(|answer| answer.is_err()).count();
    assert!(
        errors > 0 && answers.iter().all(|answer| !matches!(answer, Ok(Settled::TooLate))),
        "{answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_or_closed_to_us_shows_in_the_health_until_it_is_back() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.attributes(json!({"ApproximateNumberOfMessages": "7", "ApproximateNumberOfMessagesDelayed": "1"}));
    let consumer = SqsConsumer::from_client(fake.client(), patient(&fake)).await.unwrap();
    let health = consumer.health().unwrap();
    assert_eq!((health.state(), health.lag()), (SourceState::Up, Some(8)));
    let gone: [(support::fake::Plan, &str); 2] = [
        (|_, _| Some(Fault::Refuse(400, "QueueDoesNotExist")), "no such queue"),
        (|_, _| Some(Fault::Refuse(403, "AccessDenied")), "access denied"),
    ];
    for (plan, says) in gone {
        fake.plan(plan);
        until(
            PATIENCE,
            "it is down",
            async || matches!(health.state(), SourceState::Down(reason) if reason.contains(says)),
        )
        .await;
        fake.plan(|_, _| None);
        until(PATIENCE, "it is up", async || health.state() == SourceState::Up).await;
    }
    assert!(health.reconnects() >= 2 && health.last_receive().is_none());
    fake.fill(bodies(1));
    until(PATIENCE, "a message", async || health.last_receive().is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_is_bounded_however_much_is_held_while_sqs_does_not_answer() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.fill(bodies(2_000));
    let mut queue = patient(&fake);
    (queue.pollers, queue.call_timeout) = (8, Duration::from_secs(1));
    let mut consumer = SqsConsumer::from_client(fake.client(), queue).await.unwrap();
    let mut held = Vec::new();
    while held.len() < 2_000 {
        held.extend(consumer.receive().await.unwrap().unwrap());
    }
    fake.plan(|_, _| Some(Fault::Hang));
    // 2,000 handles are 200 calls, 16 of them concurrent: without a limit of its own that is 12 times the limit of one
    // call.
    let started = Instant::now();
    consumer.close().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(6), "it took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_missing_and_credentials_that_are_missing_are_named() {
    let fake = FakeSqs::start(|_, _| Some(Fault::Refuse(400, "QueueDoesNotExist"))).await;
    let error = SqsQueueStatus::read(&fake.client(), &fake.url()).await.unwrap_err();
    assert!(error.to_string().contains("set `endpoint`"), "{error}");

    #[derive(Debug)]
    struct None;
    impl aws_credential_types::provider::ProvideCredentials for None {
        fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let error =
                aws_credential_types::provider::error::CredentialsError::not_loaded("the chain is empty");
            aws_credential_types::provider::future::ProvideCredentials::ready(Err(error))
        }
    }
    let config = fake.client().config().to_builder().credentials_provider(None).build();
    let client = aws_sdk_sqs::Client::from_conf(config);
    let aws = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders";
    let error = SqsQueueStatus::read(&client, aws).await.unwrap_err();
    assert_eq!(error.kind(), onceward::ErrorKind::Denied);
    assert!(error.to_string().contains("no AWS credentials"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_a_queue_is_idle_is_reported_only_with_the_right_to_read_its_attributes() {
    let fake = FakeSqs::start(|action, _| {
        (action == "GetQueueAttributes").then_some(Fault::Refuse(403, "AccessDenied"))
    })
    .await;
    let mut denied = SqsConsumer::from_client(fake.client(), patient(&fake)).await.unwrap();
    assert_eq!((denied.capabilities().reports_idle, denied.is_idle().await), (false, None));
    fake.plan(|_, _| None);
    let mut allowed = SqsConsumer::from_client(fake.client(), patient(&fake)).await.unwrap();
    assert_eq!((allowed.capabilities().reports_idle, allowed.is_idle().await), (true, Some(true)));
}

fn outgoing(url: &str, id: &str, payload: String) -> Outgoing {
    Outgoing { destination: url.into(), id: id.into(), payload: payload.into(), ..Outgoing::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_too_large_for_its_queue_fails_alone_and_for_good() {
    // SQS counts attributes; this server refuses a call with more than 1,000 bytes in a message, as SQS may: as a whole.
    let fake = FakeSqs::start(|_, _| None).await;
    fake.attributes(json!({"MaximumMessageSize": "1000"}));
    let publisher = SqsPublisher::from_client(fake.client());
    let mut wide = outgoing(&fake.url(), "wide", "x".repeat(900));
    wide.headers = vec![("a".into(), "y".repeat(200).into())];
    let batch = [
        outgoing(&fake.url(), "small", "x".into()),
        outgoing(&fake.url(), "large", "x".repeat(1_000)),
        wide,
        outgoing(&fake.url(), "fits", "x".repeat(900)),
        outgoing(&fake.url(), "huge", "x".repeat(1024 * 1024)),
    ];
    let results = publisher.publish(&batch).await;
    let kinds: Vec<_> = results.iter().map(|result| result.as_ref().err().map(Error::kind)).collect();
    let large = Some(onceward::ErrorKind::TooLarge);
    assert_eq!(kinds, [None, large, large, None, large]);
    assert_eq!(fake.left(), 2);
    assert!(!results[1].as_ref().unwrap_err().is_retryable());
}
