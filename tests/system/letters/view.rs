//! `dlq list` and `dlq show` change nothing; `dlq redrive` takes a corrected payload, and a letter of a mismatch.

use lapin::types::AMQPValue;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders;
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use super::{dies_once, dlq, letters_to, lines, list, printed, run, texts};
use crate::kafka::topic::Topic;
use crate::pair::{LONG, Waiting, scene, with_redis, without_source};
use crate::rabbitmq::queue::Queue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::worker;
use crate::{kafka, rabbitmq, sqs};

const SECRET: &str = "a secret that nobody else knows";
const IDS: [&str; 3] = ["first", "second", "third"];

/// The ids of the orders in the letters of a list.
fn listed_orders(scene: &Scene) -> Vec<String> {
    let show = |id: &String| {
        let shown = printed(&dlq(scene, "show", &[id, "--payload"])).to_owned();
        serde_json::from_str::<Value>(&shown).expect("JSON")["id"].as_str().expect("an id").to_owned()
    };
    texts(&list(scene, &[]), "id").iter().map(show).collect()
}

/// Three letters, looked at again and again: they stay as they are, and are redriven after that.
fn letters_are_looked_at(setup: &Setup, source: &impl Waiting) {
    let scene = scene(setup);
    for id in IDS {
        source.publish(&[dies_once(id)]);
        run(&scene, source);
    }
    let first = list(&scene, &[]);
    assert_eq!(first.len(), 3, "{first:#?}");
    for letter in &first {
        assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("attempts-exhausted"), &json!(1)));
        assert!(letter["age_ms"].is_u64() && letter["key"].is_string() && letter["died_at"].is_string());
    }
    assert_eq!(listed_orders(&scene), IDS, "in the order in which they came");
    let shown = lines(&dlq(&scene, "show", &[first[0]["id"].as_str().expect("an id"), "--json"]));
    assert!(shown[0]["payload"].is_string() && shown[0]["headers"].is_array(), "{shown:#?}");
    assert_eq!(dlq(&scene, "show", &["no-such-letter"]).code(), Some(1));
    let dry = printed(&dlq(&scene, "redrive", &["--dry-run", "--limit", "2"])).to_owned();
    assert!(dry.ends_with("would-redrive=2 resolved=0 left=0"), "{dry}");

    let again = list(&scene, &[]);
    assert_eq!(texts(&again, "id"), texts(&first, "id"), "neither lost nor reordered");
    let ended = dlq(&scene, "redrive", &["--yes"]);
    assert_eq!(printed(&ended), "redriven=3 resolved=0 left=0");
    run(&scene, source);
    assert_eq!(scene.count(Kind::Effect).len(), 3);
}

#[test]
fn letters_of_classic_and_quorum_queues_stay_in_their_places() {
    for kind in ["classic", "quorum"] {
        let arguments = [("x-queue-type", AMQPValue::LongString(kind.into()))];
        let name = format!("look-{kind}");
        let (queue, dead) = (Queue::declare(&name, &[]), Queue::declare(&format!("{name}.dead"), &arguments));
        let setup =
            with_redis(rabbitmq::on(&queue, without_source()), Redis::shared()).set("scope", name.as_str());
        letters_are_looked_at(&letters_to(setup, &dead.name), &queue);
    }
}

#[test]
fn a_quorum_queue_is_not_read_up_to_its_delivery_limit() {
    let limit = [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-delivery-limit", AMQPValue::LongInt(6)),
    ];
    let (queue, dead) = (Queue::declare("look-limit", &[]), Queue::declare("look-limit.dead", &limit));
    let setup =
        with_redis(rabbitmq::on(&queue, without_source()), Redis::shared()).set("scope", "look-limit");
    let setup = letters_to(setup, &dead.name).set("source.rabbitmq.dead_letter_delivery_limit", 6);
    let scene = scene(&setup);
    queue.publish(&[dies_once("one")]);
    run(&scene, &queue);
    let mut reads = 0;
    let refused = loop {
        let ended = dlq(&scene, "list", &["--json"]);
        match ended.code() {
            Some(0) => reads += 1,
            _ => break ended,
        }
        assert!(reads <= 6, "the broker has dropped the letter");
    };
    assert!(refused.stderr.contains("delivery-limit of -1"), "{refused:#?}");
    assert_eq!(refused.code(), Some(78), "{refused:#?}");
    until("the letter in its queue", LONG, || dead.depth() == (1, 0));
}

#[test]
fn letters_of_kafka_stay_in_their_places() {
    let (topic, dead) = (Topic::create("look", 1), Topic::create("look.dead", 1));
    letters_are_looked_at(&letters_to(kafka::setup(&topic), dead.name()), &topic);
}

#[test]
fn letters_of_sqs_become_visible_again() {
    let (queue, dead) = (SqsQueue::create("look", &[]), SqsQueue::create("look-dead", &[]));
    let setup = with_redis(sqs::setup(&queue), Redis::shared()).set("scope", "look-sqs");
    let setup = letters_to(setup, &dead.url);
    let scene = scene(&setup);
    queue.publish(&IDS.map(dies_once));
    run(&scene, &queue);
    for _ in 0..2 {
        let mut orders = texts(&list(&scene, &[]), "id");
        orders.sort();
        orders.dedup();
        assert_eq!(orders.len(), 3);
    }
    assert_eq!(printed(&dlq(&scene, "redrive", &["--yes"])), "redriven=3 resolved=0 left=0");
    assert!(dead.is_empty());
    run(&scene, &queue);
    assert_eq!(scene.count(Kind::Effect).len(), 3);
}

/// A payload that no handler accepts is corrected, and runs under the key of the letter.
fn a_payload_is_corrected(setup: &Setup, queue: &Queue<'_>) {
    let scene = scene(setup);
    queue.publish(&[orders::order("wrong", &json!({"do": "permanent"}))]);
    run(&scene, queue);
    let letter = &list(&scene, &[])[0];
    assert_eq!(letter["reason"], "permanent");
    let id = letter["id"].as_str().expect("an id");
    scene.write("corrected", br#"{"id": "wrong", "corrected": true}"#);
    let ended = dlq(
        &scene,
        "redrive",
        &["--yes", "--id", id, "--payload-file", &scene.path("corrected").to_string_lossy()],
    );
    assert_eq!(printed(&ended), "redriven=1 resolved=0 left=0");
    run(&scene, queue);
    assert_eq!(scene.count(Kind::Effect)["wrong"], 1);
    let log = lines(&dlq(&scene, "log", &["--json", "--id", id]));
    assert_eq!(texts(&log, "action"), ["redrive", "redriven"]);
    assert!(log.iter().all(|entry| entry["edited"] == true && entry["key"] == letter["key"]), "{log:#?}");
    assert_eq!(list(&scene, &[]).len(), 0);
}

#[test]
fn a_corrected_payload_runs_with_and_without_a_secret_in_each_store() {
    for (name, secret) in [("correct-plain", None), ("correct-sealed", Some(SECRET))] {
        let (queue, dead) = (Queue::declare(name, &[]), Queue::declare(&format!("{name}.dead"), &[]));
        let setup = letters_to(rabbitmq::on(&queue, without_source()), &dead.name).set("scope", name);
        let setup = match secret {
            Some(secret) => with_redis(setup, Redis::shared()).set("key.secret", secret),
            None => setup
                .without("store.sqlite")
                .set("store.postgres.url", Postgres::shared().url("postgres"))
                .set("store.postgres.schema", "corrected"),
        };
        a_payload_is_corrected(&setup, &queue);
    }
}

#[test]
fn a_letter_of_a_mismatch_runs_under_a_key_of_its_own() {
    let setup = letters_to(worker(), "dead.ndjson").set("policy.on_mismatch", "dead-letter");
    let orders = [orders::order("same", &json!({})), orders::order("same", &json!({"other": true}))];
    let scene = crate::stage::scene(&setup, &orders);
    assert_eq!(scene.run_to_end().code(), Some(3));
    let letters = list(&scene, &["--reason", "mismatch"]);
    assert_eq!(letters.len(), 1, "{letters:#?}");
    assert_eq!(list(&scene, &["--reason", "permanent"]).len(), 0);
    assert_eq!(printed(&dlq(&scene, "redrive", &["--yes"])), "redriven=1 resolved=0 left=0");
    assert_eq!(scene.run_to_end().code(), Some(0));
    assert_eq!(scene.count(Kind::Effect)["same"], 2);
}
