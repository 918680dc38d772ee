//! Faults that an emulator does not produce: entries that fail individually, expired handles, receives that never
//! return, throttling. The real SDK talks to a server of ours; the failed extension goes through a proxy to the
//! emulator.
//!
//! Bounds on calls are several times what is needed, and a small part of what a busy loop would send.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settled, Settlement};
use onceward::telemetry::{Counter, Counters};
use onceward::{Error, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, Summary, handler_fn};
use onceward_sqs::{SqsConsumer, SqsQueueConfig, SqsQueueStatus};
use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::proxy::Proxy;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    self, bodies,
    fake::{FakeSqs, Fault},
    patient, until,
};

const PATIENCE: Duration = Duration::from_secs(60);

type Runs = Arc<Mutex<Vec<String>>>;

/// A pipeline at work.
struct Worker {
    counters: Arc<Counters>,
    stop: CancellationToken,
    running: JoinHandle<Result<Summary, Error>>,
}

impl Worker {
    /// Each message takes `ms`, and is written down when its run begins.
    async fn start(
        client: aws_sdk_sqs::Client,
        queue: SqsQueueConfig,
        store: &Arc<MemoryStore>,
        runs: &Runs,
        ms: u64,
    ) -> Self {
        async fn handle((runs, ms): (Runs, u64), message: Message) -> Handled {
            let text = String::from_utf8(message.payload().to_vec())?;
            runs.lock().unwrap().push(text);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(())
        }
        let consumer = SqsConsumer::from_client(client, queue).await.unwrap();
        let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::clone(store))
            .keys([KeySource::MessageId])
            .park_exhausted()
            .handler(handler_fn((Arc::clone(runs), ms), handle))
            .unwrap();
        let (counters, stop) = (pipeline.counters(), CancellationToken::new());
        let running = tokio::spawn(pipeline.run(stop.clone()));
        Self { counters, stop, running }
    }

    async fn stop(self) -> Summary {
        self.stop.cancel();
        self.running.await.unwrap().unwrap()
    }
}

fn sorted(runs: &Runs) -> Vec<String> {
    let mut runs = runs.lock().unwrap().clone();
    runs.sort_by_key(|run| run.parse::<usize>().unwrap());
    runs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_of_a_batch_is_asked_for_again_within_the_same_settlement() {
    let fake = FakeSqs::start(|action, before| match (action, before) {
        ("DeleteMessageBatch", 0) => Some(Fault::HalfFails("InternalError")),
        _ => None,
    })
    .await;
    fake.fill(bodies(10));
    let mut consumer = SqsConsumer::from_client(fake.client(), patient(&fake)).await.unwrap();
    let deliveries = consumer.receive().await.unwrap().unwrap();
    let batch: Vec<_> = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
    let answers = consumer.acker().settle(&batch).await;
    assert_eq!(batch.len(), 10);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Settled::Done))), "{answers:?}");
    assert_eq!((fake.left(), fake.calls("DeleteMessageBatch")), (0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_failures_of_deletes_lose_nothing_and_bring_nothing_back() {
    // Three of four calls fail for half of their entries: more than one settlement's own repeats make good.
    let fake = FakeSqs::start(|action, before| match action {
        "DeleteMessageBatch" if before % 4 != 3 => Some(Fault::HalfFails("InternalError")),
        _ => None,
    })
    .await;
    fake.fill(bodies(200));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let worker = Worker::start(fake.client(), patient(&fake), &store, &runs, 1).await;
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    let summary = worker.stop().await;
    assert_eq!((summary.received(), summary.handled()), (200, 200));
    assert_eq!(sorted(&runs), bodies(200));
    let calls = fake.calls("DeleteMessageBatch");
    assert!(calls <= 400, "{calls} calls for 200 messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_handle_settles_nothing_and_the_message_is_known_when_it_comes_again() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.fill(bodies(5));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let worker = Worker::start(fake.client(), patient(&fake), &store, &runs, 1500).await;
    until(PATIENCE, "all run", async || runs.lock().unwrap().len() == 5).await;
    // Another receiver has them before the runs end, dies, and they are redelivered.
    fake.receive_elsewhere(Duration::from_secs(3));
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    let summary = worker.stop().await;
    assert_eq!(sorted(&runs), bodies(5), "a handler ran again");
    assert_eq!(summary.duplicates(), 5);
    assert_eq!(summary.counters().get(Counter::SettledTooLate), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_again_during_its_run_is_deleted_with_the_newest_handle() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.fill(bodies(5));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let worker = Worker::start(fake.client(), patient(&fake), &store, &runs, 2000).await;
    until(PATIENCE, "all run", async || runs.lock().unwrap().len() == 5).await;
    fake.receive_elsewhere(Duration::ZERO);
    until(PATIENCE, "all came again", async || worker.counters.get(Counter::Received) == 10).await;
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    let summary = worker.stop().await;
    assert_eq!(sorted(&runs), bodies(5), "a handler ran again");
    assert_eq!((summary.handled(), summary.duplicates()), (5, 5));
    assert_eq!(summary.counters().get(Counter::SettledTooLate), 0, "an older handle was used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_message_comes_again_to_the_same_consumer_is_not_stopped() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.fill(bodies(5));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let mut queue = patient(&fake);
    queue.visibility = Duration::from_secs(2);
    let worker = Worker::start(fake.client(), queue, &store, &runs, 5000).await;
    until(PATIENCE, "all run", async || runs.lock().unwrap().len() == 5).await;
    fake.receive_elsewhere(Duration::ZERO);
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    let summary = worker.stop().await;
    assert_eq!(sorted(&runs), bodies(5), "a handler ran again");
    assert_eq!(
        (summary.handled(), summary.duplicates(), summary.counters().get(Counter::SettledTooLate)),
        (5, 5, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_receives_that_never_answer_are_given_up_and_meanwhile_others_go_on() {
    let fake = FakeSqs::start(|action, before| match (action, before) {
        ("ReceiveMessage", 0) => Some(Fault::Hang),
        _ => None,
    })
    .await;
    fake.fill(bodies(100));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let mut queue = patient(&fake);
    queue.pollers = 2;
    let started = Instant::now();
    let worker = Worker::start(fake.client(), queue, &store, &runs, 1).await;
    until(PATIENCE, "all are deleted in spite of it", async || fake.left() == 0).await;
    // A receive may take its wait (1 s) and 5 s more.
    assert!(started.elapsed() < Duration::from_secs(6), "a receive that hangs held up the other");
    fake.plan(|action, _| (action == "ReceiveMessage").then_some(Fault::Hang));
    let before = fake.calls("ReceiveMessage");
    until(PATIENCE, "both hang", async || fake.calls("ReceiveMessage") >= before + 2).await;
    fake.plan(|_, _| None);
    fake.fill(["100".to_owned()]);
    let healed = Instant::now();
    until(PATIENCE, "the last is deleted", async || fake.left() == 0).await;
    assert!(healed.elapsed() < Duration::from_secs(20), "it took {:?}", healed.elapsed());
    worker.stop().await;
    assert_eq!(sorted(&runs), bodies(101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifo_receive_whose_answer_is_lost_is_repeated_and_brings_the_same_messages() {
    let fake = FakeSqs::start(|action, before| match (action, before) {
        ("ReceiveMessage", 0) => Some(Fault::AnswerLost),
        _ => None,
    })
    .await;
    fake.fill(bodies(10));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    // Without the retry they would be redelivered after their visibility timeout, which is longer than we wait.
    let mut queue = patient(&fake);
    queue.url += ".fifo";
    queue.pollers = 1;
    let worker = Worker::start(fake.client(), queue, &store, &runs, 1).await;
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    let summary = worker.stop().await;
    assert_eq!((summary.received(), summary.handled()), (10, 10));
    assert_eq!(sorted(&runs), bodies(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_one_call_in_five_throttled_or_broken_loses_nothing_and_costs_a_bounded_number_of_calls() {
    let fake = FakeSqs::start(|action, before| match (action, before % 10) {
        ("GetQueueAttributes", _) => None,
        (_, 3) => Some(Fault::Refuse(400, "ThrottlingException")),
        (_, 8) => Some(Fault::Refuse(503, "ServiceUnavailable")),
        _ => None,
    })
    .await;
    fake.fill(bodies(400));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let worker = Worker::start(fake.client(), patient(&fake), &store, &runs, 1).await;
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    let summary = worker.stop().await;
    assert_eq!((summary.received(), summary.handled()), (400, 400));
    assert_eq!(sorted(&runs), bodies(400));
    let calls = (fake.calls("ReceiveMessage"), fake.calls("DeleteMessageBatch"));
    assert!(calls.0 <= 200 && calls.1 <= 200, "{calls:?} receives and deletes for 400 messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_service_is_asked_ever_less_often_and_used_again_when_it_is_back() {
    let fake = FakeSqs::start(|action, before| match (action, before) {
        ("ReceiveMessage", 0..=5) => Some(Fault::Refuse(500, "InternalFailure")),
        ("ReceiveMessage", 6..=8) => Some(Fault::Refuse(403, "ExpiredToken")),
        ("ReceiveMessage", 9..=11) => Some(Fault::Refuse(403, "OverLimit")),
        _ => None,
    })
    .await;
    fake.fill(bodies(30));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let mut queue = patient(&fake);
    queue.pollers = 1;
    let started = Instant::now();
    let worker = Worker::start(fake.client(), queue, &store, &runs, 1).await;
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    // Twelve failures in a busy loop take some ten milliseconds.
    assert!(started.elapsed() > Duration::from_secs(5), "twelve failures in {:?}", started.elapsed());
    worker.stop().await;
    assert_eq!(sorted(&runs), bodies(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_while_too_many_are_in_flight_receives_slow_down_and_nothing_is_lost() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.most_in_flight(20);
    fake.fill(bodies(60));
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let started = Instant::now();
    let worker = Worker::start(fake.client(), patient(&fake), &store, &runs, 1000).await;
    until(PATIENCE, "all are deleted", async || fake.left() == 0).await;
    worker.stop().await;
    assert_eq!(sorted(&runs), bodies(60));
    let (calls, seconds) = (fake.calls("ReceiveMessage"), started.elapsed().as_secs_f64());
    assert!((calls as f64) < 20.0 + 30.0 * seconds, "{calls} receives in {seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_a_heartbeat_that_is_cut_brings_the_message_to_another_worker_which_waits_for_the_claim() {
    let server = ElasticMq::shared();
    let direct = support::client(server.port());
    let url = support::create(&direct, "cut").await;
    support::send(&direct, &url, &bodies(3), |_| String::new()).await;
    let proxy = Proxy::start(server.address()).unwrap();
    let (store, runs) = (Arc::new(MemoryStore::new()), Runs::default());
    let first =
        Worker::start(support::client(proxy.port()), support::quick(&url), &store, &runs, 9_000).await;
    until(PATIENCE, "all run", async || runs.lock().unwrap().len() == 3).await;
    // Visibility is 3 s, the runs take 9 s.
    proxy.partition();
    let second = Worker::start(direct.clone(), support::quick(&url), &store, &runs, 0).await;
    until(PATIENCE, "all came to the other", async || second.counters.get(Counter::InProgress) >= 3).await;
    assert_eq!(second.counters.get(Counter::Handled), 0);
    until(PATIENCE, "all are deleted", async || support::depth(&direct, &url).await == (0, 0)).await;
    proxy.heal();
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!(sorted(&runs), bodies(3), "a handler ran again");
    assert_eq!((first.handled(), second.handled(), second.duplicates()), (3, 0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_to_be_delivered_stays_invisible() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.fill(bodies(40));
    let mut queue = support::quick(&fake.url());
    queue.visibility = Duration::from_secs(1);
    let mut consumer = SqsConsumer::from_client(fake.client(), queue).await.unwrap();
    // Three times the visibility timeout, in which nothing calls `receive`.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(fake.calls("ChangeMessageVisibilityBatch") > 0);
    let acker = consumer.acker();
    let mut counts = Vec::new();
    while counts.len() < 40 {
        for delivery in consumer.receive().await.unwrap().unwrap() {
            counts.push(delivery.message.header("sqs-receive-count").unwrap().to_vec());
            acker.settle(&[(delivery.tag, Settlement::Ack)]).await;
        }
    }
    assert_eq!(counts, vec![b"1".to_vec(); 40]);
    assert_eq!(fake.left(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_says_what_was_wrong_and_nothing_of_what_was_answered() {
    let refusals: [(support::fake::Plan, &str); 3] = [
        (|_, _| Some(Fault::Garble("{\"Body\": \"SECRET")), "SQS reported an error"),
        (|_, _| Some(Fault::Refuse(403, "AccessDenied")), "AccessDenied"),
        (|_, _| Some(Fault::Refuse(400, "QueueDoesNotExist")), "no such queue"),
    ];
    for (plan, says) in refusals {
        let fake = FakeSqs::start(plan).await;
        let error = SqsQueueStatus::read(&fake.client(), &fake.url()).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(says), "{text}");
        // Neither the answer nor the signature of the request.
        assert!(!text.contains("SECRET") && !text.contains("Signature") && text.len() < 2_000, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_facts_of_a_queue_are_read_and_become_capabilities() {
    let fake = FakeSqs::start(|_, _| None).await;
    fake.attributes(json!({
        "FifoQueue": "true",
        "ContentBasedDeduplication": "true",
        "VisibilityTimeout": "45",
        "MessageRetentionPeriod": "345600",
        "RedrivePolicy": "{\"deadLetterTargetArn\":\"arn:dead\",\"maxReceiveCount\":\"7\"}",
        "ApproximateNumberOfMessages": "1",
        "ApproximateNumberOfMessagesNotVisible": "2",
        "ApproximateNumberOfMessagesDelayed": "3",
    }));
    let facts = SqsQueueStatus::read(&fake.client(), &fake.url()).await.unwrap();
    assert!(facts.fifo && facts.content_based_deduplication);
    assert_eq!(facts.visibility, Some(Duration::from_secs(45)));
    assert_eq!((facts.visible, facts.in_flight, facts.delayed), (1, 2, 3));
    assert_eq!(facts.redrive_target.as_deref(), Some("arn:dead"));
    let capabilities = facts.capabilities(&SqsQueueConfig::new(fake.url()));
    assert!(capabilities.ordered && !capabilities.delayed_retry);
    assert_eq!(capabilities.retention, Some(Duration::from_secs(4 * 24 * 3600)));
    assert_eq!(
        (capabilities.delivery_limit, capabilities.heartbeat),
        (Some(7), Some(Duration::from_secs(30)))
    );
}
