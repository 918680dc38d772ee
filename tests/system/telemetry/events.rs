//! Each metric changes by its event, on real servers.

use std::collections::BTreeSet;
use std::thread;

use onceward::Outgoing;
use onceward_test_servers::ports::free_port;
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::rabbitmq::RabbitMq;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use super::rare_events;
use super::scrape::Watched;
use crate::kafka::topic::Topic;
use crate::letters::letters_to;
use crate::pair::{Waiting, scene, with_redis, without_source};
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::queue::Queue as RabbitQueue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::PATIENCE;
use crate::{kafka, pubsub, rabbitmq, sqs};

const REFERENCE: &str = include_str!("../../../docs/reference/metrics.md");

/// Metrics that a configuration sets.
const SET: [(&str, f64); 5] = [
    ("concurrency", 4.0),
    ("in_flight_limit", 25.0),
    ("in_flight_limit_bytes", 268_435_456.0),
    ("waiting_limit", 100.0),
    ("ttl_seconds", 691_200.0),
];

/// What runs, which no event changes.
fn version() -> String {
    format!("build_info{{version=\"{}\"}}", onceward::VERSION)
}

/// A run that is scraped.
pub(super) fn start(setup: Setup) -> (Scene, Running, Watched) {
    start_in(setup, |_| ())
}

/// As [`start`], in a folder with more than the configuration.
pub(super) fn start_in(setup: Setup, prepare: impl FnOnce(&Scene)) -> (Scene, Running, Watched) {
    let port = free_port().expect("a port");
    let scene = scene(&setup.set("telemetry.listen", format!("127.0.0.1:{port}")));
    prepare(&scene);
    let running = scene.run();
    (scene, running, Watched::start(port))
}

/// Its end, and what has changed.
pub(super) fn end(running: Running, watched: &Watched) -> BTreeSet<String> {
    running.kill();
    watched.families()
}

pub(super) fn line(id: &str, fields: &Value) -> [String; 1] {
    [order(id, fields)]
}

/// Failures of messages, of a broker and of a store.
fn rabbitmq_and_redis() -> BTreeSet<String> {
    let (broker, mut redis) = (RabbitMq::shared(), Redis::start());
    broker.ctl(&["add_user", "measured", "password"]);
    broker.ctl(&["set_permissions", "measured", ".*", ".*", ".*"]);
    let (queue, letters) =
        (RabbitQueue::declare("measured", &[]), RabbitQueue::declare("measured.dead", &[]));
    let url = format!("amqp://measured:password@127.0.0.1:{}/%2f", broker.port());
    let setup = letters_to(rabbitmq::on(&queue, without_source()), &letters.name)
        .set("source.rabbitmq.url", url)
        .set("retry.max_attempts", 2)
        .set("handler.worker.timeout", "1s")
        .set("source.rabbitmq.prefetch", 25)
        .set("telemetry.otlp", format!("http://127.0.0.1:{}", free_port().expect("a port")))
        .set("pipeline.max_in_flight", 25)
        .set("pipeline.max_batch", 25);
    let (scene, running, mut watched) = start(with_redis(setup, &redis));

    each_message_counts(&queue, &mut watched);
    watched.see(&[
        "export_failures_total{signal=\"traces\"}",
        "export_failures_total{signal=\"metrics\"}",
        "spans_dropped_total",
    ]);

    queue.publish(&line("forgotten", &json!({"ms": 700})));
    until("its run", PATIENCE, || scene.count(Kind::Start).contains_key("forgotten"));
    redis.cli(&["FLUSHALL"]);
    watched.see(&["claim_lost_total"]);
    // More than may be in flight: some wait in the broker when the connection is opened again.
    let many: Vec<_> = (0..900).map(|number| order(&format!("many-{number}"), &json!({"ms": 100}))).collect();
    queue.publish(&many);
    watched.see(&["intake_paused{reason=\"in_flight\"}"]);
    broker.ctl(&["change_password", "measured", "another"]);
    broker.ctl(&["close_all_user_connections", "measured", "a test"]);
    watched.see(&["source_up", "settled_too_late_total"]);
    broker.ctl(&["change_password", "measured", "password"]);
    watched.see(&["source_reconnects_total", "source_lag"]);

    redis.kill();
    let later: Vec<_> = (0..30).map(|number| order(&format!("later-{number}"), &json!({}))).collect();
    queue.publish(&later);
    watched.see(&["store_errors_total", "store_up", "intake_paused{reason=\"store\"}"]);
    redis.start_again();
    until("it goes on", PATIENCE, || watched.value("store_up") == Some(1.0));

    letters.delete();
    queue.publish(&line("bad-again", &json!({"do": "permanent"})));
    watched.see(&["dead_letter_errors_total"]);
    until("their number is unknown", PATIENCE, || watched.value("dead_letter_depth").is_none());
    end(running, &watched)
}

/// Messages that succeed, fail, are late, and repeat others.
fn each_message_counts(queue: &RabbitQueue<'_>, watched: &mut Watched) {
    for (name, value) in SET {
        assert_eq!(watched.value(name), Some(value), "{name}");
    }
    assert_eq!(watched.value(&version()), Some(1.0));
    queue.publish(&line("one", &json!({})));
    watched.see(&[
        "received_total",
        "handled_total",
        "keys_total",
        "queue_wait_seconds",
        "claim_seconds",
        "handler_seconds_count{outcome=\"succeeded\"}",
        "complete_seconds",
        "settle_seconds",
        "attempts",
        "source_last_receive_seconds",
    ]);
    queue.publish(&line("one", &json!({})));
    watched.see(&["duplicates_total", "duplicate_age_seconds"]);
    queue.publish(&line("one", &json!({"other": 1})));
    watched.see(&["mismatches_total", "mismatch_acked_total"]);
    queue.publish(&line("again", &json!({"do": "fail", "times": 1})));
    watched.see(&["retried_total", "runs_failed_total", "handler_seconds_count{outcome=\"failed\"}"]);
    queue.publish(&line("bad", &json!({"do": "permanent"})));
    watched.see(&["dead_lettered_total", "dead_letters_total{reason=\"permanent\"}", "dead_letter_depth"]);
    queue.publish(&line("bad", &json!({"do": "permanent"})));
    watched.see(&["duplicates_of_dead_total"]);
    queue.publish(&["{\"no\":\"id\"}".to_owned()]);
    watched.see(&["missing_keys_total", "rejected_total"]);
    queue.publish(&line("slow", &json!({"ms": 2000})));
    watched.see(&[
        "in_flight",
        "in_flight_bytes",
        "running",
        "oldest_unsettled_seconds",
        "timeouts_total",
        "suspected_double_effects_total",
        "waiting",
    ]);
}

/// A handler that is unavailable, and a broker that keeps what waits.
fn sqs_and_sqlite() -> BTreeSet<String> {
    let queue = SqsQueue::create("measured", &[]);
    let script = "read -r line; case $line in *away*) test ! -e away;; *bad*) exit 1;; esac || exit 126";
    let setup = sqs::setup(&queue)
        .without("handler")
        .set("handler.exec.command", vec!["sh", "-c", script])
        .set("pipeline.breaker_keys", 1)
        .set("store.sqlite.lease", "1s")
        .set("store.sqlite.timeout", "500ms")
        // Longer than a retry may take that the breaker and the queue hold up: a key that is forgotten before has no second attempt.
        .set("store.sqlite.ttl", "10s")
        .set("policy.on_exhausted", "park")
        .set("retry.max_attempts", 2)
        .set("retry.initial", "2s")
        .set("retry.max", "2s");
    let (scene, running, mut watched) = start(setup);
    scene.write("away", b"");
    queue.publish(&[order("away-1", &json!({})), order("away-2", &json!({}))]);
    watched.see(&["unavailable_total", "handler_up", "breaker_open", "intake_paused{reason=\"handler\"}"]);
    std::fs::remove_file(scene.path("away")).expect("it was there");
    until("the handler is back", PATIENCE, || watched.value("handler_up") == Some(1.0));
    queue.publish(&line("bad", &json!({})));
    watched.see(&["given_back_total", "parked_total"]);
    // Keys of 10 s, which are removed for the first time after 30 s.
    queue.publish(&line("brief", &json!({})));
    watched.see(&["purged_total"]);
    end(running, &watched)
}

/// Assignment and reset of partitions, and order.
fn kafka_and_redis() -> BTreeSet<String> {
    let topic = Topic::create("measured", 3);
    let letters = Topic::create_with_record_limit(topic.broker, "measured-dead", 1, 1_000);
    let setup = letters_to(kafka::setup(&topic), &letters.name)
        .set("policy.on_letter_refused", "drop")
        .set("retry.max_attempts", 7)
        .set("scope", "kafka-measured")
        .set("source.kafka.properties.auto.offset.reset", "earliest")
        .set("retry.initial", "2s")
        .set("retry.max", "2s");
    let (scene, running, mut watched) = start(setup);
    watched.see(&["source_assigned_partitions"]);
    topic.publish(&[
        order("first", &json!({"lane": "a", "do": "fail", "times": 5})),
        order("second", &json!({"lane": "a"})),
    ]);
    watched.see(&["blocked_lanes", "handled_total"]);
    topic.publish(&line("large", &json!({"lane": "b", "do": "permanent", "text": "x".repeat(2_000)})));
    watched.see(&["letters_refused_total", "letters_dropped_total"]);
    topic.publish(&line("small", &json!({"lane": "c", "do": "permanent"})));
    watched.see(&["dead_letter_depth", "dead_letter_oldest_seconds"]);
    topic.recreate();
    topic.publish(&line("new", &json!({"lane": "a"})));
    watched.see(&["source_resets_total"]);
    until("no lag", PATIENCE, || topic.is_empty());
    let mut changed = end(running, &watched);

    topic.publish(&line("lost", &json!({"lane": "a"})));
    topic.expire();
    let running = scene.run();
    // Found before the source is up.
    let name = "source_lost_to_retention_total";
    until("the loss", PATIENCE, || watched.value(name) == Some(1.0));
    changed.insert(name.to_owned());
    running.kill();
    changed
}

/// Two programs with one scope, of which one is paused beyond its lease while the other has a copy.
fn pubsub_and_redis() -> BTreeSet<String> {
    let subscriptions = ["measured-1", "measured-2"].map(|name| Subscription::create(name, &json!({})));
    let proxies = [(); 2].map(|()| Proxy::start(Redis::shared().address()).expect("a proxy"));
    let own = |number: usize| {
        let setup = with_redis(pubsub::setup(&subscriptions[number]), Redis::shared())
            .set("scope", "pubsub-measured")
            .set("store.redis.url", format!("redis://{}", proxies[number].address()))
            .set("store.redis.lease", "2s")
            .set("store.redis.timeout", "500ms");
        start(setup)
    };
    let [(scene, holder, mut held), (rival, waiting, mut other)] = [own(0), own(1)];
    let slow = line("slow", &json!({"ms": 3000}));
    subscriptions[0].publish(&slow);
    until("its run", PATIENCE, || scene.count(Kind::Start).contains_key("slow"));
    subscriptions[1].publish(&slow);
    other.see(&["in_progress_total"]);
    holder.stop();
    other.see(&["takeovers_total"]);
    holder.go_on();
    held.see(&["leases_lost_total"]);

    // A completion that is on its way while its claim ends.
    let late = line("late", &json!({"ms": 500}));
    subscriptions[0].publish(&late);
    until("its run", PATIENCE, || scene.count(Kind::Start).contains_key("late"));
    proxies[0].set(Direction::ToServer, Flow::Stall);
    subscriptions[1].publish(&late);
    until("the other's run", PATIENCE, || rival.count(Kind::Effect).contains_key("late"));
    proxies[0].heal();
    held.see(&["fenced_total"]);
    let mut changed = end(holder, &held);
    changed.extend(end(waiting, &other));
    changed
}

/// Duplicates that run, and a store that is unavailable without holding anything up.
fn observing() -> BTreeSet<String> {
    let (queue, mut redis) = (RabbitQueue::declare("observed", &[]), Redis::start());
    let setup = rabbitmq::on(&queue, without_source()).set("mode", "observe");
    let (_scene, running, mut watched) =
        start(with_redis(setup, &redis).set("policy.on_store_down", "process"));
    queue.publish(&[order("one", &json!({})), order("one", &json!({}))]);
    watched.see(&["observed_duplicates_total"]);
    let forged = Outgoing {
        headers: [("scope", "billing"), ("key", &"0".repeat(32)), ("generation", "1")]
            .map(|(name, value)| (format!("onceward-{name}"), value.to_owned().into()))
            .to_vec(),
        ..queue.message(&order("forged", &json!({})))
    };
    queue.publish_all(&[forged]);
    watched.see(&["own_headers_ignored_total"]);
    redis.kill();
    queue.publish(&line("two", &json!({})));
    watched.see(&["unprotected_total"]);
    end(running, &watched)
}

#[test]
fn each_metric_of_a_run_changes_by_its_event() {
    let stories: [fn() -> BTreeSet<String>; 10] = [
        rabbitmq_and_redis,
        sqs_and_sqlite,
        kafka_and_redis,
        pubsub_and_redis,
        observing,
        rare_events::replies,
        rare_events::transactions,
        rare_events::file,
        rare_events::deletes,
        rare_events::library,
    ];
    let mut changed = BTreeSet::new();
    // Not all at once: some states of theirs hold for seconds only.
    for stories in stories.chunks(5) {
        thread::scope(|scope| {
            let threads: Vec<_> = stories.iter().map(|story| scope.spawn(story)).collect();
            changed.extend(threads.into_iter().flat_map(|thread| thread.join().expect("the story ends")));
        });
    }
    let (_, run) = REFERENCE.split_once("## A run").expect("a table");
    let (run, _) = run.split_once("\n## ").expect("another table");
    let metrics = run.lines().filter_map(|line| line.strip_prefix("| `onceward_")?.split('`').next());
    let open: Vec<_> = metrics
        .filter(|metric| !changed.contains(*metric))
        .filter(|metric| !SET.iter().any(|(name, _)| name == metric) && *metric != "build_info")
        .collect();
    assert!(open.is_empty(), "no event here changes {open:#?}; changed: {changed:#?}");
}
