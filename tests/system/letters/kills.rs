//! A redrive that is killed twice: each effect happens once, in the order of its key, and the audit trail is complete.

use std::collections::{BTreeMap, BTreeSet};

use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::size;
use onceward_test_support::effects::Kind;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use super::{dlq, letters_to, lines, list, printed, run, texts};
use crate::kafka::topic::Topic;
use crate::pair::{LONG, Waiting, scene, stop, with_redis, without_source};
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::queue::Queue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::{each, ledger_of, worker};
use crate::{kafka, pubsub, rabbitmq, sqs};

const LANES: usize = 8;
const WHY: &str = "the handler is fixed";
const WHO: &str = "ada";

/// Orders in lanes whose handlers fail at first; `SLOW` asks for a thousand.
fn orders() -> (Vec<String>, Vec<Produced>) {
    let (mut lines, mut produced) = (Vec::new(), Vec::new());
    for number in 0..size(10, 125) {
        for lane in 0..LANES {
            let id = format!("{lane}-{number:03}");
            lines.push(order(&id, &json!({"lane": lane, "do": "fail", "times": 1})));
            produced.push(Produced { key: id, order_key: Some(lane.to_string()), confirmed: true });
        }
    }
    (lines, produced)
}

/// The letters with an entry of one of these actions.
fn audited(scene: &Scene, actions: &[&str]) -> BTreeSet<String> {
    let entries = lines(&dlq(scene, "log", &["--json", "--limit", "1000000"])).into_iter();
    let of_action = |entry: &Value| entry["action"].as_str().is_some_and(|action| actions.contains(&action));
    texts(&entries.filter(of_action).collect::<Vec<_>>(), "letter").into_iter().collect()
}

fn redrive(scene: &Scene, more: &[&str]) -> Running {
    let arguments = [&["dlq", "redrive", "onceward.toml", "--yes", "--why", WHY], more].concat();
    scene.start(scene.command(&arguments).env_remove("SUDO_USER").env("USER", WHO))
}

/// Kills two redrives in the middle, and lets the third one finish. `from` says where letters are read, if that has to be said;
/// `is_returned`, whether the broker has taken back what a killed redrive held, if the next one does not wait for that.
fn redrive_under_kills(scene: &Scene, letters: usize, from: &[&str], is_returned: impl Fn() -> bool) {
    let done = || audited(scene, &["redriven", "resolved"]).len();
    // So slow that it can be killed in the middle.
    let rate = (letters / 10).to_string();
    for _ in 0..2 {
        let before = done();
        let running = redrive(scene, &[&["--rate", &rate], from].concat());
        until("redriven letters", LONG, || done() >= before + letters / 8);
        assert_eq!(running.kill().signal(), Some(9));
        assert!(done() < letters, "it ended before it was killed");
        until("the other letters to be returned", LONG, &is_returned);
    }
    let ended = redrive(scene, from).wait_within(LONG);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
}

/// Each letter has an entry before and after its publish, with its user and their reason; none is left.
fn the_audit_is_complete(scene: &Scene, letters: &BTreeSet<String>, from: &[&str]) {
    assert_eq!(audited(scene, &["redrive"]), *letters);
    assert_eq!(audited(scene, &["redriven", "resolved"]), *letters);
    let entries = lines(&dlq(scene, "log", &["--json", "--limit", "1000000"]));
    let is_signed = |entry: &Value| entry["user"] == WHO && entry["why"] == WHY && entry["run"].is_string();
    assert!(entries.iter().all(is_signed), "{entries:#?}");
    let runs: BTreeSet<_> = texts(&entries, "run").into_iter().collect();
    assert_eq!(runs.len(), 3, "each command is a run of its own");
    assert_eq!(printed(&dlq(scene, "list", from)).lines().last(), Some("listed=0 skipped=0"));
}

fn each_effect_once_in_order(scene: &Scene, produced: Vec<Produced>) {
    let ids: BTreeMap<_, _> = each(&produced.iter().map(|own| own.key.clone()).collect::<Vec<_>>(), 1);
    assert_eq!(scene.count(Kind::Effect), ids);
    let ledger = ledger_of(scene, produced);
    assert_eq!(ledger.out_of_order(), []);
}

/// A pipeline with attempts to spare: a worker that is slow on a busy machine is no death of a message.
fn fixed(scene: &Scene, setup: &Setup) -> Running {
    scene.configure(&setup.clone().set("retry.max_attempts", 20));
    scene.run()
}

/// The pipeline runs while the redrive is killed.
fn killed_twice(setup: &Setup, source: &impl Waiting, from: &[&str]) {
    let (lines, produced) = orders();
    let scene = scene(setup);
    source.publish(&lines);
    run(&scene, source);
    assert!(scene.count(Kind::Effect).is_empty());
    let letters: BTreeSet<_> = texts(&list(&scene, from), "id").into_iter().collect();
    assert_eq!(letters.len(), produced.len());

    let running = fixed(&scene, setup);
    redrive_under_kills(&scene, letters.len(), from, || true);
    until("all effects", LONG, || scene.count(Kind::Effect).len() == produced.len());
    until("an empty source", LONG, || source.is_empty());
    stop(vec![running]);
    the_audit_is_complete(&scene, &letters, from);
    each_effect_once_in_order(&scene, produced);
}

#[test]
fn of_rabbitmq() {
    let (queue, dead) = (Queue::declare("redrive-kills", &[]), Queue::declare("redrive-kills.dead", &[]));
    let setup =
        with_redis(rabbitmq::on(&queue, without_source()), Redis::shared()).set("scope", "letters-kills");
    let setup = setup.set("pipeline.ordering", "key").set("pipeline.order_by", "json:/lane");
    killed_twice(&letters_to(setup, &dead.name), &queue, &[]);
}

#[test]
fn of_kafka() {
    let (topic, dead) = (Topic::create("redrive-kills", 2), Topic::create("redrive-kills.dead", 2));
    killed_twice(&letters_to(kafka::setup(&topic), dead.name()), &topic, &[]);
}

/// As [`killed_twice`], where only the first letters of each group are read: the rest of the group is behind those that are held.
fn killed_twice_in_groups(
    setup: &Setup,
    source: &impl Waiting,
    dead: &impl Waiting,
    from: &[&str],
    is_returned: impl Fn() -> bool,
) {
    let (lines, produced) = orders();
    let letters = produced.len();
    let scene = scene(setup);
    source.publish(&lines);
    run(&scene, source);
    assert!(scene.count(Kind::Effect).is_empty());
    let running = fixed(&scene, setup);
    redrive_under_kills(&scene, letters, from, is_returned);
    until("all effects", LONG, || scene.count(Kind::Effect).len() == letters);
    until("an empty source", LONG, || source.is_empty());
    stop(vec![running]);
    let audited = audited(&scene, &["redriven", "resolved"]);
    assert_eq!(audited.len(), letters);
    the_audit_is_complete(&scene, &audited, from);
    assert!(dead.is_empty());
    each_effect_once_in_order(&scene, produced);
}

#[test]
fn of_sqs() {
    let (queue, dead) =
        (SqsQueue::create("redrive-kills.fifo", &[]), SqsQueue::create("redrive-kills-dead.fifo", &[]));
    let setup = with_redis(sqs::setup(&queue), Redis::shared()).set("scope", "letters-kills-sqs");
    killed_twice_in_groups(&letters_to(setup, &dead.url), &queue, &dead, &[], || true);
}

#[test]
fn of_pubsub() {
    let (source, dead) =
        (Subscription::ordered("redrive-kills"), Subscription::ordered("redrive-kills-dead"));
    let setup = with_redis(pubsub::setup(&source), Redis::shared()).set("scope", "letters-kills-pubsub");
    let (setup, from) = (letters_to(setup, &dead.topic), ["--from", &dead.full_name]);
    // A command ends 3 s after the last letter, and what a killed one held is redelivered after the ack deadline.
    killed_twice_in_groups(&setup, &source, &dead, &from, || dead.depth().1 == 0);
}

#[test]
fn of_a_file() {
    let (lines, produced) = orders();
    let setup = worker().set("pipeline.ordering", "key").set("pipeline.order_by", "json:/lane");
    let scene = crate::stage::scene(&letters_to(setup, "dead.ndjson"), &lines);
    assert_eq!(scene.run().wait_within(LONG).code(), Some(3));
    let letters: BTreeSet<_> = texts(&list(&scene, &[]), "id").into_iter().collect();
    assert_eq!(letters.len(), produced.len());
    redrive_under_kills(&scene, letters.len(), &[], || true);
    assert_eq!(scene.run().wait_within(LONG).code(), Some(0));
    the_audit_is_complete(&scene, &letters, &[]);
    each_effect_once_in_order(&scene, produced);
}
