//! Whole pipelines on a real broker: a member that joins under load, a record that stops its partition only, a topic that is
//! recreated under load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::{
    Error, Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, Scope, Summary, handler_fn,
};
use onceward_kafka::{KafkaConfig, KafkaConsumer};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{LIMIT, Topic, until};

/// The effects: by payload, the member and the time.
type Effects = Arc<Mutex<BTreeMap<String, Vec<(&'static str, Instant)>>>>;

#[derive(Clone)]
struct App {
    member: &'static str,
    takes: Duration,
    effects: Effects,
}

async fn handle(app: App, message: Message) -> Handled {
    let text = String::from_utf8(message.payload().to_vec()).unwrap();
    tokio::time::sleep(app.takes).await;
    if text == "poison" {
        return Err(HandlerError::retry_after(Duration::from_secs(600), "not today"));
    }
    app.effects.lock().unwrap().entry(text).or_default().push((app.member, Instant::now()));
    Ok(())
}

struct Member {
    stop: CancellationToken,
    running: JoinHandle<Result<Summary, Error>>,
}

impl Member {
    async fn start(config: KafkaConfig, store: &Arc<MemoryStore>, app: App) -> Self {
        let consumer = KafkaConsumer::open(config).await.unwrap();
        let pipeline = Pipeline::builder(Scope::parse("test").unwrap(), consumer, Arc::clone(store))
            .keys([KeySource::Position])
            .concurrency(16)
            .park_exhausted()
            .handler(handler_fn(app, handle))
            .unwrap();
        let stop = CancellationToken::new();
        Self { running: tokio::spawn(pipeline.run(stop.clone())), stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.running).await.unwrap().unwrap().unwrap();
    }
}

fn counts(effects: &Effects, member: &str) -> usize {
    effects.lock().unwrap().values().flatten().filter(|(own, _)| *own == member).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_joins_under_load_has_work_before_the_first_is_through_with_its_own() {
    let topic = Topic::new(4).await;
    // A minute and more for one member.
    topic.fill(1000).await;
    let (store, effects) = (Arc::new(MemoryStore::new()), Effects::default());
    let app = |member| App { member, takes: Duration::from_millis(300), effects: Arc::clone(&effects) };
    let first = Member::start(topic.config(), &store, app("first")).await;
    until("the first works", || counts(&effects, "first") >= 50).await;
    let before: i64 = topic.committed().await.iter().map(|own| (*own).max(0)).sum();
    let second = Member::start(topic.config(), &store, app("second")).await;
    until("the second works", || counts(&effects, "second") >= 10).await;
    // Far from its end: the second did not wait until the first was through.
    assert!(counts(&effects, "first") < 2000, "{}", counts(&effects, "first"));
    let after: i64 = topic.committed().await.iter().map(|own| (*own).max(0)).sum();
    assert!(after > before, "nothing was committed meanwhile");
    first.stop().await;
    second.stop().await;
    let effects = effects.lock().unwrap();
    let twice: Vec<_> = effects.iter().filter(|(_, own)| own.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_waits_at_the_head_of_a_partition_does_not_stop_the_others() {
    let topic = Topic::new(3).await;
    topic.send(0, None, Some("poison")).await;
    topic.fill(3000).await;
    let (store, effects) = (Arc::new(MemoryStore::new()), Effects::default());
    let app = App { member: "only", takes: Duration::ZERO, effects: Arc::clone(&effects) };
    let member = Member::start(topic.config(), &store, app).await;
    let done = |partition: &str| {
        effects.lock().unwrap().keys().filter(|own| own.starts_with(partition)).count() == 3000
    };
    until("the other partitions are through", || done("1:") && done("2:")).await;
    let end = Instant::now() + LIMIT;
    while topic.committed().await[1..] != [3000, 3000] {
        assert!(Instant::now() < end, "{:?}", topic.committed().await);
    }
    assert!(topic.committed().await[0] <= 0);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_recreated_five_times_under_a_pipeline_loses_no_record() {
    let topic = Topic::new(2).await;
    let (store, effects) = (Arc::new(MemoryStore::new()), Effects::default());
    let app = App { member: "only", takes: Duration::from_millis(2), effects: Arc::clone(&effects) };
    let member = Member::start(topic.config(), &store, app).await;
    for round in 0..6 {
        for number in 0..60 {
            topic.send(number % 2, None, Some(&format!("{round}:{number}"))).await;
        }
        let all = || {
            let effects = effects.lock().unwrap();
            (0..60).all(|number| effects.contains_key(&format!("{round}:{number}")))
        };
        until(&format!("round {round}"), all).await;
        if round < 5 {
            topic.recreate(2).await;
        }
    }
    member.stop().await;
}
