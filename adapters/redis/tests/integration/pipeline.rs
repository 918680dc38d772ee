//! Pipelines over failing servers: an unresponsive cluster node, and permissions and passwords that are withdrawn for a while.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::testing::{Habits, MemoryBroker};
use onceward::{Handled, KeyExtractor, KeySource, Message, Pipeline, PipelineConfig, handler_fn};
use onceward_redis::RedisConfig;
use onceward_test_servers::redis::{Redis, RedisCluster};
use tokio_util::sync::CancellationToken;

use crate::support::{ConfigExt, bucket, config, open, owners, scope};

/// Far more than the pipeline holds concurrently, so that the messages of the silent node could fill it.
const MESSAGES: u64 = 3_000;

type Runs = Arc<Mutex<HashSet<String>>>;

async fn wait(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !so() {
        assert!(Instant::now() < end, "not within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn goes_on(is_killed: bool) {
    const AWAY: usize = 2;
    async fn note(runs: Runs, message: Message) -> Handled {
        runs.lock().unwrap().insert(String::from_utf8(message.payload().to_vec()).unwrap());
        Ok(())
    }
    let mut cluster = RedisCluster::start(3);
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let urls = cluster.urls();
    let config = RedisConfig::cluster(urls);
    let store = Arc::new(open(&config));
    let owners = owners(&cluster);
    let broker = MemoryBroker::new(Habits::default());
    let runs = Runs::default();
    let pipeline = Pipeline::builder(scope(), broker.consumer(), store)
        .keys([KeySource::MessageId])
        .config(PipelineConfig { concurrency: 32, max_in_flight: 256, ..PipelineConfig::default() })
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), note))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    let publish = |text: &str| broker.publish(Message::builder(text.to_owned()).message_id(text));
    publish("first");
    wait("the first message", || runs.lock().unwrap().len() == 1).await;

    if is_killed {
        cluster.nodes_mut()[AWAY].kill();
    } else {
        cluster.nodes()[AWAY].pause(true);
    }
    let keys = KeyExtractor::new(&scope(), vec![KeySource::MessageId]);
    let mut stays = HashSet::new();
    for number in 0..MESSAGES {
        let text = number.to_string();
        let key = keys.key_of(&Message::builder("").message_id(&text).build()).unwrap();
        if owners[&bucket(&key)] != AWAY {
            stays.insert(text.clone());
        }
        publish(&text);
    }
    assert!(stays.len() > 1_500 && stays.len() < 2_500, "{}", stays.len());
    wait("all messages whose node answers", || {
        let runs = runs.lock().unwrap();
        stays.iter().all(|text| runs.contains(text))
    })
    .await;

    if is_killed {
        cluster.nodes_mut()[AWAY].start_again();
    } else {
        cluster.nodes()[AWAY].pause(false);
    }
    wait("all messages", || runs.lock().unwrap().len() as u64 == MESSAGES + 1).await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.handled(), summary.retried()), (MESSAGES + 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_holds_up_its_own_messages_only() {
    goes_on(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_holds_up_its_own_messages_only() {
    goes_on(false).await;
}

/// Handlers run while a permission of their user is withdrawn for three seconds.
async fn no_effect_runs_twice(what: &str, take: impl Fn(&Redis), give: impl Fn(&Redis)) {
    const ORDERS: usize = 200;
    type Effects = Arc<Mutex<HashMap<String, u32>>>;
    async fn slow(effects: Effects, message: Message) -> Handled {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let text = String::from_utf8(message.payload().to_vec()).unwrap();
        *effects.lock().unwrap().entry(text).or_default() += 1;
        Ok(())
    }
    let server = Redis::start();
    give(&server);
    let config = config(&server.url()).username("worker").password("one");
    let store = Arc::new(open(&config));
    let broker = MemoryBroker::new(Habits::default());
    let effects = Effects::default();
    let pipeline = Pipeline::builder(scope(), broker.consumer(), store)
        .keys([KeySource::MessageId])
        .config(PipelineConfig {
            concurrency: 16,
            lease: Duration::from_secs(20),
            ..PipelineConfig::default()
        })
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&effects), slow))
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(stop.clone()));
    for number in 0..ORDERS {
        broker.publish(Message::builder(number.to_string()).message_id(number.to_string()));
    }
    wait("some effects", || effects.lock().unwrap().len() > 20).await;
    take(&server);
    tokio::time::sleep(Duration::from_secs(3)).await;
    give(&server);
    wait("all acks", || broker.acked() == ORDERS as u64).await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    let doubled = effects.lock().unwrap().values().filter(|count| **count != 1).count();
    assert_eq!((effects.lock().unwrap().len(), doubled, summary.dead_lettered()), (ORDERS, 0, 0), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_passwords_that_are_away_for_a_while_double_no_effect() {
    let set = |server: &Redis, rights: &[&str]| {
        server.cli(&[&["ACL", "SETUSER", "worker"], rights].concat());
    };
    let give = |server: &Redis| set(server, &["reset", "on", ">one", "~*", "+@all"]);
    let kill = |server: &Redis| drop(server.cli(&["CLIENT", "KILL", "USER", "worker"]));
    no_effect_runs_twice("scripts", |server| set(server, &["-evalsha", "-eval"]), give).await;
    no_effect_runs_twice("a command within scripts", |server| set(server, &["-set"]), give).await;
    no_effect_runs_twice("keys", |server| set(server, &["resetkeys"]), give).await;
    let password = |server: &Redis| {
        set(server, &["resetpass", ">two"]);
        kill(server);
    };
    no_effect_runs_twice("the password", password, give).await;
    let user = |server: &Redis| {
        server.cli(&["ACL", "DELUSER", "worker"]);
    };
    no_effect_runs_twice("the user", user, give).await;
}
