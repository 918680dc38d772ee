//! `onceward bench` on real servers: it measures on sources of its own, checks each run, and leaves nothing behind.

use std::fs;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use lapin::types::AMQPValue;
use onceward::ErrorKind;
use onceward_rabbitmq::RabbitmqEndpoint;
use onceward_test_servers::kafka::Kafka;
use onceward_test_servers::redis::Redis;
use onceward_test_support::process::{Ended, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::{Value, json};

use crate::kafka::topic::Topic;
use crate::pair::{scene, with_redis, without_source};
use crate::rabbitmq::queue::Queue;
use crate::stage::{PATIENCE, worker};
use crate::{kafka, pubsub, rabbitmq, sqs};

/// Each of them is measured twice.
const WAYS: [&str; 4] = ["raw", "one-by-one", "onceward", "tuned"];

/// Measures 400 messages, of which a share are copies.
fn measured(scene: &Scene, copies: &str) -> Value {
    let args = [
        "bench",
        "onceward.toml",
        "--messages",
        "400",
        "--rounds",
        "2",
        "--duplicates",
        copies,
        "--yes",
        "--json",
    ];
    let ended = scene.start(&mut scene.command(&args)).wait_within(3 * PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    serde_json::from_str(&ended.stdout).expect("one JSON object")
}

/// Each way has rates, and the ledger of each run is right.
fn every_run_is_right(report: &Value, copies_percent: u64) {
    let names = report["results"].as_array().expect("results").iter().map(|result| &result["name"]);
    assert_eq!(names.collect::<Vec<_>>(), WAYS);
    for result in report["results"].as_array().expect("results") {
        let rate = &result["messages_per_second"];
        let [least, median, most] =
            ["least", "median", "most"].map(|name| rate[name].as_f64().expect("a rate"));
        assert!(0.0 < least && least <= median && median <= most, "{result}");
    }
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2 * WAYS.len());
    for run in runs {
        let number = |name: &str| run[name].as_u64().expect("a number");
        let (name, messages) = (run["name"].as_str().expect("a name"), number("messages"));
        assert_eq!(messages, if name == "one-by-one" { 40 } else { 400 }, "{run}");
        let suppressed = if name == "raw" { 0 } else { messages * copies_percent / 100 };
        assert_eq!(
            number("suppressed"),
            suppressed + if name == "raw" { 0 } else { number("redelivered") },
            "{run}"
        );
        assert!(number("handled") >= messages - suppressed, "{run}");
    }
}

/// The names that everything temporary has had.
fn suffix(report: &Value) -> String {
    let suffix = report["temporary"].as_str().expect("a name").to_owned();
    assert!(suffix.starts_with("onceward-bench-"), "{suffix}");
    suffix
}

fn scope(report: &Value) -> &str {
    report["scope"].as_str().expect("a scope")
}

/// No key of the scope of a measurement is left.
fn no_keys_are_left(scene: &Scene, setup: &Setup, scope: &str, suffix: &str) {
    let scope = format!("{scope}.{suffix}");
    scene.write("measured.toml", setup.clone().set("scope", scope.as_str()).text().as_bytes());
    let stats = scene.execute(&["keys", "stats", "measured.toml", "--json"]);
    assert_eq!(stats.code(), Some(0), "{stats:#?}");
    let stats: Value = serde_json::from_str(&stats.stdout).expect("one JSON object");
    let counts = stats.as_object().expect("counts").values().filter_map(Value::as_u64);
    assert_eq!(counts.sum::<u64>(), 0, "{stats}");
}

/// A delete whose answer is late counts as not acknowledged, so that a busy machine would end the measurement.
fn patient(setup: Setup, store: &str) -> Setup {
    setup.set(&format!("store.{store}.lease"), "60s").set(&format!("store.{store}.timeout"), "10s")
}

fn migrated(setup: &Setup) -> Scene {
    let scene = scene(setup);
    let ended = scene.execute(&["migrate", "onceward.toml"]);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    scene
}

/// The files of the scene that a measurement has created.
fn temporary_files(scene: &Scene) -> Vec<String> {
    let files = fs::read_dir(scene.path("")).expect("the folder").flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("onceward-bench")).collect()
}

#[test]
fn a_file_is_measured_with_sqlite_beside_the_orders_which_stay_as_they_are() {
    let setup = worker();
    let scene = migrated(&setup);
    scene.write("orders.ndjson", b"{\"id\":\"a\"}\n");
    let report = measured(&scene, "25");
    every_run_is_right(&report, 25);
    assert_eq!(temporary_files(&scene), Vec::<String>::new());
    assert_eq!(fs::read(scene.path("orders.ndjson")).unwrap(), b"{\"id\":\"a\"}\n");
    assert_eq!(scene.notes(), [], "the handler of the file has run");
    no_keys_are_left(&scene, &setup, scope(&report), &suffix(&report));
    // The file's own scope knows nothing of it.
    let own = scene.execute(&["keys", "stats", "onceward.toml", "--json"]);
    assert!(!own.stdout.contains('1'), "{own:#?}");
}

#[test]
fn envelopes_and_a_store_in_memory_are_measured_and_the_text_says_what_was_created() {
    let setup = worker().without("store.sqlite").set("store.memory", toml::Table::new());
    let setup = setup.set("source.file.format", "envelope").set("key.from", vec!["header:k".to_owned()]);
    let scene = scene(&setup);
    let ended = scene.execute(&["bench", "onceward.toml", "--messages", "500", "--rounds", "1", "--yes"]);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    for part in [
        "raw ",
        "one-by-one ",
        "onceward ",
        "tuned ",
        "checked: 4 runs",
        "removed: all sources and keys named onceward-bench-",
    ] {
        assert!(ended.stdout.contains(part), "no {part:?} in {}", ended.stdout);
    }
    assert_eq!(temporary_files(&scene), Vec::<String>::new());
}

#[test]
fn a_signal_ends_a_measurement_and_what_it_had_created_is_removed() {
    let setup = worker();
    let scene = migrated(&setup);
    let running =
        scene.start(&mut scene.command(&["bench", "onceward.toml", "--messages", "200000", "--yes"]));
    // The first run is that of a loop that claims.
    let claims = || scene.database().texts("SELECT hex(key) FROM onceward_keys").len();
    until("claims", PATIENCE, || claims() > 10);
    let [file] = &temporary_files(&scene)[..] else { panic!("not one temporary file") };
    let suffix = file.trim_end_matches("-1.orders.ndjson").to_owned();
    running.send("INT");
    let ended = running.wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("a signal came before the measurement was over"), "{ended:#?}");
    assert_eq!(temporary_files(&scene), Vec::<String>::new());
    no_keys_are_left(&scene, &setup, "billing", &suffix);
}

#[test]
fn nothing_is_created_without_consent_without_a_schema_or_with_copies_that_are_none() {
    let scene = scene(&worker());
    let refused = |args: &[&str], code: i32, words: &str| {
        let ended: Ended = scene.execute(&[&["bench", "onceward.toml"], args].concat());
        assert_eq!(ended.code(), Some(code), "{ended:#?}");
        assert!(ended.stderr.contains(words), "{ended:#?}");
        assert_eq!(temporary_files(&scene), Vec::<String>::new());
    };
    refused(&[], 2, "give --yes to create a temporary source without it");
    refused(&["--yes", "--messages", "99"], 2, "99");
    refused(&["--yes"], 78, "migrate");
    assert!(!scene.path("onceward.db").exists());
    scene.configure(&worker().set("key.from", vec!["position".to_owned()]));
    scene.execute(&["migrate", "onceward.toml"]);
    refused(&["--yes", "--duplicates", "10"], 78, "give --duplicates 0");
}

#[test]
fn rabbitmq_queues_of_both_types_are_measured_with_redis_in_a_queue_of_the_same_type() {
    for kind in ["quorum", "classic"] {
        let name = format!("bench-{kind}");
        let queue = Queue::declare(&name, &[("x-queue-type", AMQPValue::LongString(kind.into()))]);
        queue.publish_all(&[queue.message("{\"id\":\"a\"}")]);
        let setup = patient(with_redis(rabbitmq::on(&queue, without_source()), Redis::shared()), "redis");
        let scene = scene(&setup);
        let report = measured(&scene, "10");
        every_run_is_right(&report, 10);
        let suffix = suffix(&report);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let endpoint = RabbitmqEndpoint::new(queue.broker.url());
        for run in 1..=8 {
            let gone = runtime.block_on(endpoint.queue_status(&format!("{suffix}-{run}.{name}")));
            assert_eq!(gone.unwrap_err().kind(), ErrorKind::Config);
        }
        assert_eq!(runtime.block_on(endpoint.queue_status(&name)).unwrap().ready, 1);
        no_keys_are_left(&scene, &setup, scope(&report), &suffix);
    }
}

#[test]
fn a_kafka_topic_is_measured_with_redis_and_neither_topic_nor_group_is_left() {
    let topic = Topic::create("bench", 3);
    let setup = patient(with_redis(kafka::setup(&topic), Redis::shared()), "redis");
    let setup = setup.set("source.kafka.properties.auto.offset.reset", "latest");
    let scene = scene(&setup);
    let report = measured(&scene, "10");
    every_run_is_right(&report, 10);
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", Kafka::shared().bootstrap()).create().unwrap();
    let left = || {
        let metadata = client.fetch_metadata(None, Duration::from_secs(5)).unwrap();
        let groups = client.fetch_group_list(None, Duration::from_secs(5)).unwrap();
        let topics = metadata.topics().iter().map(|topic| topic.name().to_owned());
        let groups = groups.groups().iter().map(|group| group.name().to_owned()).collect::<Vec<_>>();
        topics.chain(groups).filter(|name| name.contains("onceward-bench")).collect::<Vec<_>>()
    };
    // A broker reports a topic for a moment after it was deleted.
    until("all topics and groups to be gone", PATIENCE, || left().is_empty());
    no_keys_are_left(&scene, &setup, scope(&report), &suffix(&report));
}

#[test]
fn sqs_queues_are_measured_and_a_fifo_queue_refuses_copies_that_it_would_drop() {
    for (name, copies) in [("bench", "10"), ("bench.fifo", "0")] {
        let queue = sqs::queue::Queue::create(name, &[(Attribute::VisibilityTimeout, "30")]);
        let setup = patient(sqs::setup(&queue), "sqlite").set("source.sqs.visibility", "30s");
        let scene = migrated(&setup);
        let report = measured(&scene, copies);
        every_run_is_right(&report, copies.parse().unwrap());
        assert_eq!(sqs::queue::names("onceward-bench"), Vec::<String>::new());
        no_keys_are_left(&scene, &setup, scope(&report), &suffix(&report));
        if name.ends_with(".fifo") {
            let ended = scene.execute(&["bench", "onceward.toml", "--duplicates", "5", "--yes"]);
            assert_eq!(ended.code(), Some(78), "{ended:#?}");
            assert!(ended.stderr.contains("give --duplicates 0"), "{ended:#?}");
            assert_eq!(sqs::queue::names("onceward-bench"), Vec::<String>::new());
        }
    }
}

#[test]
fn a_pubsub_subscription_is_measured_with_redis_and_neither_topic_nor_subscription_is_left() {
    let subscription = pubsub::subscription::Subscription::create("bench", &json!({}));
    let setup = patient(with_redis(pubsub::setup(&subscription), Redis::shared()), "redis");
    let scene = scene(&setup);
    let report = measured(&scene, "10");
    every_run_is_right(&report, 10);
    let (parent, last) = subscription.full_name.rsplit_once('/').unwrap();
    let name = format!("{parent}/{}-1.{last}", suffix(&report));
    let gone = setup.clone().set("source.pubsub.subscription", name.as_str());
    scene.write("gone.toml", gone.text().as_bytes());
    let checked = scene.execute(&["check", "gone.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("does not exist"), "{checked:#?}");
    no_keys_are_left(&scene, &setup, scope(&report), &suffix(&report));
}
