//! Kafka topics, with the keys in Redis: members that join, leave, are paused, killed and cut off under load, single troubles,
//! retry topics, passwords and TLS, and transforms and effects in Postgres under kills.

mod cut_off;
mod disturbed;
mod effects;
mod joins;
mod members;
mod outbox;
mod partitions;
mod retries;
mod secured;
pub(crate) mod topic;
mod transform;

use std::time::Duration;

use onceward_test_servers::kafka::Kafka;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::pair::{LONG, Waiting, scene, stop, with_redis, without_source};
use crate::stage::each;
use topic::{Record, Topic};

/// A member that is silent for so long is no member.
const SESSION_MS: i64 = 4_000;

pub(crate) fn setup(topic: &Topic<'_>) -> Setup {
    let setup = without_source()
        .set("scope", format!("kafka-{}", topic.name))
        .set("source.kafka.brokers", vec![topic.broker.bootstrap()])
        .set("source.kafka.topics", vec![topic.name.clone()])
        .set("source.kafka.group", topic.name.as_str())
        .set("source.kafka.properties.session.timeout.ms", SESSION_MS)
        .set("source.kafka.properties.heartbeat.interval.ms", 300)
        .set("pipeline.drain_timeout", "3s")
        .set("pipeline.ordering", "key")
        .set("pipeline.order_by", "broker");
    with_redis(setup, Redis::shared()).set("store.redis.lease", "3s")
}

#[test]
fn a_slow_message_holds_the_offset_and_nothing_else_and_after_a_kill_only_it_runs_again() {
    let topic = Topic::create("slow", 1);
    let mut lines = vec![orders::order("slow", &json!({"lane": "slow", "ms": 3000}))];
    let ids: Vec<_> = (0..200).map(|number| format!("order-{number:03}")).collect();
    lines.extend(ids.iter().map(|id| orders::order(id, &json!({"lane": id}))));
    topic.publish(&lines);
    let scene = scene(&setup(&topic));
    let running = scene.run();
    until("all other effects", LONG, || scene.count(Kind::Effect).len() >= ids.len());
    assert!(!scene.count(Kind::Effect).contains_key("slow"), "the slow one was waited for");
    assert!(matches!(topic.committed().as_deref(), Some([-1 | 0])), "{:?}", topic.committed());
    assert_eq!(running.kill().signal(), Some(9));

    let running = scene.run();
    until("the slow effect", LONG, || scene.count(Kind::Effect).contains_key("slow"));
    until("no lag", LONG, || topic.is_empty());
    stop(vec![running]);
    let mut starts = each(&ids, 1);
    starts.insert("slow".into(), 2);
    assert_eq!(scene.count(Kind::Start), starts);
}

#[test]
fn a_handler_of_three_poll_intervals_keeps_its_partitions() {
    let topic = Topic::create("long", 2);
    let mut lines = vec![orders::order("long", &json!({"ms": 15_000}))];
    let ids: Vec<_> = (0..20).map(|number| format!("order-{number:02}")).collect();
    lines.extend(ids.iter().map(|id| orders::order(id, &json!({}))));
    topic.publish(&lines);
    let setup = setup(&topic).set("source.kafka.properties.max.poll.interval.ms", 5_000);
    let scene = scene(&setup);
    // A member that was evicted would give its partitions to the other.
    let running = vec![scene.run(), scene.run()];
    until("the long effect", LONG, || scene.count(Kind::Effect).contains_key("long"));
    until("no lag", LONG, || topic.is_empty());
    let said: String = running.iter().map(onceward_test_support::process::Running::stderr).collect();
    stop(running);
    assert!(!said.contains("lost to other members") && !said.contains("max.poll"), "{said}");
    let mut starts = each(&ids, 1);
    starts.insert("long".into(), 1);
    assert_eq!(scene.count(Kind::Start), starts);
}

/// Neither the session nor the poll interval bounds a drain: the member continues to poll.
#[test]
fn a_drain_longer_than_session_and_poll_interval_keeps_its_partitions() {
    let topic = Topic::create("drains", 1);
    topic.publish(&[orders::order("long", &json!({"ms": 14_000}))]);
    let setup = setup(&topic)
        .set("source.kafka.properties.max.poll.interval.ms", SESSION_MS)
        .set("pipeline.drain_timeout", "30s");
    let scene = scene(&setup);
    let drained = scene.run();
    until("its run", LONG, || scene.count(Kind::Start).len() == 1);
    drained.terminate();
    // It takes what the first one gives up, or loses.
    let other = scene.run();
    let ended = drained.wait_within(LONG);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), 1), "{ended:#?}");
    assert!(!ended.stderr.contains("lost to other members"), "{ended:#?}");
    until("no lag", LONG, || topic.is_empty());
    stop(vec![other]);
    assert_eq!(scene.count(Kind::Start), each(&["long".to_owned()], 1));
}

#[test]
fn a_broker_that_is_killed_mid_run_and_comes_back_loses_and_doubles_nothing() {
    let mut broker = Kafka::start();
    let orders = Orders::with_copies(3_000, 300, &json!({"ms": 2}), &mut Chance::new());
    let settings = {
        let topic = Topic::create_on(&broker, "restart", 4);
        topic.publish(&orders.lines);
        setup(&topic)
    };
    let scene = scene(&settings);
    let running = vec![scene.run(), scene.run()];
    until("effects", LONG, || scene.count(Kind::Effect).len() >= 500);
    broker.kill();
    std::thread::sleep(Duration::from_secs(2));
    broker.start_again();
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    let topic = Topic::named(&broker, "restart", 4);
    until("no lag", LONG, || topic.is_empty());
    stop(running);
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn ten_thousand_duplicates_in_a_row_bring_the_lag_to_zero() {
    let topic = Topic::create("copies", 4);
    let ids: Vec<_> = (0..20).map(|number| format!("order-{number:02}")).collect();
    let once: Vec<_> = ids.iter().map(|id| orders::order(id, &json!({}))).collect();
    let copies = (0..500).flat_map(|_| once.clone());
    topic.publish(&once.iter().cloned().chain(copies).collect::<Vec<_>>());
    let scene = scene(&setup(&topic));
    let running = scene.run();
    until("no lag", LONG, || {
        topic.ends().is_some_and(|ends| ends.iter().sum::<i64>() == 10_020) && topic.is_empty()
    });
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Start), each(&ids, 1));

    // Everything once more, after the broker has lost the group's offsets.
    topic.forget_offsets();
    let running = scene.run();
    until("no lag", LONG, || topic.is_empty());
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Start), each(&ids, 1));
}

#[test]
fn dead_letters_go_to_a_topic_with_where_they_came_from_and_check_and_status_see_both() {
    let (topic, dead) = (Topic::create("parts", 1), Topic::create("parts.dead", 1));
    topic.publish(&[orders::order("well", &json!({})), orders::order("ill", &json!({"do": "permanent"}))]);
    let setup = setup(&topic)
        .set("policy.on_exhausted", "dead-letter")
        .set("store.redis.ttl", "6d")
        .set("dead_letter.to", dead.name.as_str());
    let scene = scene(&setup);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    for line in [
        "kafka:parts answers, 2 messages, 0 consumers",
        "1 partitions; group parts is Dead with 0 members",
        "ttl is 518400s, but retries and the broker's retention let duplicates arrive",
        "parts.dead is there, 0 dead letters",
    ] {
        assert!(checked.stdout.contains(line), "{line}: {checked:#?}");
    }

    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(3), 1), "{ended:#?}");
    assert_eq!(ended.summary("dead-lettered"), 1, "{ended:#?}");
    assert!(topic.is_empty(), "{:?}", topic.committed());
    let letters = dead.records();
    let [Record { payload, headers, .. }] = &letters[..] else { panic!("{letters:?}") };
    assert!(String::from_utf8_lossy(payload).contains("\"ill\""));
    assert_eq!(
        (headers["onceward-origin"].as_str(), headers["onceward-reason"].as_str()),
        ("parts", "permanent")
    );
    assert!(headers["onceward-position"].ends_with(":0:1"), "{headers:?}");
    let status = scene.execute(&["status", "onceward.toml"]);
    assert!(status.stdout.contains("1 in parts.dead"), "{status:#?}");
    assert!(status.stdout.contains("0 messages, 0 consumers"), "{status:#?}");

    // What is wrong with the dead letters is no reason to leave out the source.
    scene.configure(&setup.clone().set("dead_letter.to", "parts.nowhere"));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    for line in ["kafka:parts answers, ", "dead_letter.to: cannot inspect topic parts.nowhere"] {
        assert!(checked.stdout.contains(line), "{line}: {checked:#?}");
    }

    scene.configure(&setup.set("source.kafka.topics", vec!["nowhere"]));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("inspect topic nowhere"), "{checked:#?}");
}

#[test]
fn retries_wait_in_a_topic_and_run_then_and_the_publish_handler_sends_to_another() {
    let [topic, waits, results] =
        ["orders", "orders-waits", "orders-results"].map(|name| Topic::create(name, 2));
    let orders = Orders::with_copies(60, 20, &json!({"do": "fail", "times": 1}), &mut Chance::new());
    topic.publish(&orders.lines);
    let setup = setup(&topic)
        .set("source.kafka.retry_topics.orders-waits", "1s")
        .set("pipeline.ordering", "none")
        .without("pipeline.order_by")
        .set("retry.initial", "1600ms")
        .set("retry.max", "1600ms")
        .set("retry.jitter", "none");
    let failing = scene(&setup);
    let ended = failing.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), 40), "{ended:#?}");
    assert_eq!(failing.count(Kind::Start), each(&orders.ids, 2));
    assert_eq!(failing.count(Kind::Effect), each(&orders.ids, 1));
    assert!(topic.is_empty());
    assert!(waits.records().len() >= 40, "nothing waited there");

    let bridge = setup
        .set("scope", "kafka-bridge")
        .set("source.kafka.group", "bridge")
        .without("handler.worker")
        .set("handler.publish.kafka.brokers", vec![topic.broker.bootstrap()])
        .set("handler.publish.kafka.topic", results.name.as_str());
    let bridging = scene(&bridge);
    let ended = bridging.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), 40), "{ended:#?}");
    let records = results.records();
    let sent: std::collections::BTreeSet<_> =
        records.iter().map(|record| &record.headers["message-id"]).collect();
    assert_eq!((records.len(), sent.len()), (40, 40), "each once, under an id of its own");
}
