//! `dlq purge` deletes what its filter selects, and nothing else; also where nothing can be deleted.

use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::scene::Scene;
use serde_json::Value;

use super::{dies_once, dlq, letters_to, lines, list, printed, run, texts};
use crate::kafka::topic::Topic;
use crate::pair::{Waiting, scene, with_redis, without_source};
use crate::rabbitmq::queue::Queue;
use crate::stage::worker;
use crate::{kafka, rabbitmq};

const IDS: [&str; 4] = ["a", "b", "c", "d"];

/// Purges the second letter and redrives the third; the others are left, also by the next command.
fn the_middle_is_removed(scene: &Scene) {
    let keys = texts(&list(scene, &[]), "key");
    assert_eq!(keys.len(), 4);
    let refused = dlq(scene, "purge", &["--key", &keys[1]]);
    assert_eq!(refused.code(), Some(2), "{refused:#?}");
    let dry = printed(&dlq(scene, "purge", &["--key", &keys[1], "--dry-run"])).to_owned();
    assert!(dry.ends_with("would-purge=1 skipped=3"), "{dry}");

    let purged = dlq(scene, "purge", &["--key", &keys[1], "--yes", "--why", "no such customer"]);
    assert_eq!(printed(&purged), "purged=1 skipped=3");
    assert_eq!(texts(&list(scene, &[]), "key"), [&*keys[0], &keys[2], &keys[3]]);
    let redriven = dlq(scene, "redrive", &["--key", &keys[2], "--yes"]);
    assert_eq!(printed(&redriven), "redriven=1 resolved=0 left=0 skipped=2");
    assert_eq!(texts(&list(scene, &[]), "key"), [&*keys[0], &keys[3]]);

    let log = lines(&dlq(scene, "log", &["--json"]));
    assert_eq!(texts(&log, "action"), ["purged", "redrive", "redriven"]);
    assert_eq!(texts(&log, "key"), [&*keys[1], &keys[2], &keys[2]]);
    assert_eq!(log[0]["why"], Value::from("no such customer"));
    let text = printed(&dlq(scene, "log", &["--limit", "1"])).to_owned();
    assert!(text.contains("redriven") && text.lines().count() == 1, "{text}");
}

fn purged(scene: &Scene, source: &impl Waiting) {
    source.publish(&IDS.map(dies_once));
    run(scene, source);
    the_middle_is_removed(scene);
    assert_eq!(printed(&dlq(scene, "redrive", &["--yes"])), "redriven=2 resolved=0 left=0");
    run(scene, source);
    let effects = scene.count(Kind::Effect);
    assert_eq!((effects.len(), list(scene, &[]).len()), (3, 0), "{effects:?}");
}

#[test]
fn in_rabbitmq() {
    let (queue, dead) = (Queue::declare("purge", &[]), Queue::declare("purge.dead", &[]));
    let setup = with_redis(rabbitmq::on(&queue, without_source()), Redis::shared()).set("scope", "purge");
    purged(&scene(&letters_to(setup.set("pipeline.concurrency", 1), &dead.name)), &queue);
}

#[test]
fn in_kafka() {
    let (topic, dead) = (Topic::create("purge", 1), Topic::create("purge.dead", 1));
    purged(&scene(&letters_to(kafka::setup(&topic), dead.name())), &topic);
}

#[test]
fn in_a_file() {
    let setup = letters_to(worker(), "dead.ndjson");
    let scene = crate::stage::scene(&setup, &IDS.map(dies_once));
    assert_eq!(scene.run_to_end().code(), Some(3));
    the_middle_is_removed(&scene);
    assert_eq!(printed(&dlq(&scene, "redrive", &["--yes"])), "redriven=2 resolved=0 left=0");
    assert_eq!(scene.run_to_end().code(), Some(0));
    assert_eq!((scene.count(Kind::Effect).len(), list(&scene, &[]).len()), (3, 0));
}
