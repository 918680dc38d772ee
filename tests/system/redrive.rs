//! `onceward dlq redrive`: dead letters return to their source and are handled once more, once.

use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders;
use onceward_test_support::process::{Ended, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::kafka::topic::Topic;
use crate::pair::{LONG, Waiting, scene, stop, with_redis, without_source};
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::queue::Queue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::worker;
use crate::{kafka, pubsub, rabbitmq, sqs};

const SECRET: &str = "a secret that nobody else knows";

/// An order whose cause of death is fixed after it has died.
fn dies_once() -> String {
    orders::order("dies-once", &json!({"do": "fail", "times": 3}))
}

/// With dead letters.
fn letters_to(setup: Setup, to: &str) -> Setup {
    setup.set("policy.on_exhausted", "dead-letter").set("dead_letter.to", to)
}

fn redrive(scene: &Scene, more: &[&str]) -> Ended {
    scene.execute(&[&["dlq", "redrive", "onceward.toml", "--yes"], more].concat())
}

fn told(ended: &Ended) -> &str {
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    ended.stdout.trim()
}

/// Runs until nothing waits in the source.
fn run(scene: &Scene, source: &impl Waiting) {
    let running = scene.run();
    until("an empty source", LONG, || source.is_empty());
    stop(vec![running]);
}

/// A letter dies at one, is moved back by the command, and its effect happens once.
fn dies_and_comes_back(setup: &Setup, source: &impl Waiting) {
    let scene = dies_and_comes_back_from(setup, source, &[]);
    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("received")), (Some(0), 0), "{ended:#?}");
    assert_eq!(scene.count(Kind::Start)["dies-once"], 4);
}

/// As [`dies_and_comes_back`], with further arguments of the command, and without the run that ends by itself.
fn dies_and_comes_back_from(setup: &Setup, source: &impl Waiting, from: &[&str]) -> Scene {
    let scene = scene(&setup.clone().set("retry.max_attempts", 3));
    source.publish(&[dies_once(), orders::order("well", &json!({}))]);
    run(&scene, source);
    assert_eq!(scene.count(Kind::Start)["dies-once"], 3);
    assert!(!scene.count(Kind::Effect).contains_key("dies-once"));

    assert_eq!(told(&redrive(&scene, from)), "redriven=1 resolved=0 left=0");
    run(&scene, source);
    assert_eq!((scene.count(Kind::Start)["dies-once"], scene.count(Kind::Effect)["dies-once"]), (4, 1));
    assert_eq!(told(&redrive(&scene, from)), "redriven=0 resolved=0 left=0");
    assert!(source.is_empty());
    scene
}

#[test]
fn a_letter_of_rabbitmq_is_redriven_with_and_without_a_secret() {
    for (name, secret) in [("redrive-plain", None), ("redrive-sealed", Some(SECRET))] {
        let (queue, dead) = (Queue::declare(name, &[]), Queue::declare(&format!("{name}.dead"), &[]));
        let setup = rabbitmq::on(&queue, letters_to(without_source(), &dead.name)).set("scope", name);
        let setup = match secret {
            Some(secret) => setup.set("key.secret", secret),
            None => setup,
        };
        dies_and_comes_back(&setup, &queue);
    }
}

#[test]
fn a_letter_that_is_moved_back_by_hand_is_lost_neither_with_nor_without_a_secret() {
    for (name, secret, runs) in [("by-hand-plain", None, 3), ("by-hand-sealed", Some(SECRET), 4)] {
        let (queue, dead) = (Queue::declare(name, &[]), Queue::declare(&format!("{name}.dead"), &[]));
        let setup = rabbitmq::on(&queue, letters_to(without_source(), &dead.name)).set("scope", name);
        let setup = match secret {
            Some(secret) => setup.set("key.secret", secret),
            None => setup,
        };
        let scene = scene(&setup);
        queue.publish(&[dies_once()]);
        run(&scene, &queue);
        dead.move_all_to(&queue);
        run(&scene, &queue);
        assert_eq!(scene.count(Kind::Start)["dies-once"], runs, "{name}");
        assert_eq!(dead.is_empty(), secret.is_some(), "{name}: what is not redriven is a letter again");
        if secret.is_none() {
            assert_eq!(told(&redrive(&scene, &[])), "redriven=1 resolved=0 left=0");
            run(&scene, &queue);
        }
        assert_eq!(scene.count(Kind::Effect)["dies-once"], 1, "{name}");
    }
}

#[test]
fn letters_from_before_there_was_a_secret_are_taken_on_demand() {
    let name = "redrive-unsealed";
    let (queue, dead) = (Queue::declare(name, &[]), Queue::declare(&format!("{name}.dead"), &[]));
    let setup = rabbitmq::on(&queue, letters_to(without_source(), &dead.name)).set("scope", name);
    let scene = scene(&setup);
    queue.publish(&[dies_once()]);
    run(&scene, &queue);
    scene.configure(&setup.set("key.secret", SECRET));
    assert_eq!(told(&redrive(&scene, &[])), "redriven=0 resolved=0 left=1");
    until("the letter to be given back", LONG, || dead.depth() == (1, 0));
    assert_eq!(told(&redrive(&scene, &["--unsealed"])), "redriven=1 resolved=0 left=0");
    run(&scene, &queue);
    assert_eq!((scene.count(Kind::Start)["dies-once"], scene.count(Kind::Effect)["dies-once"]), (4, 1));
}

#[test]
fn a_letter_of_kafka_is_redriven() {
    let (topic, dead) = (Topic::create("redrive", 2), Topic::create("redrive.dead", 1));
    let setup = letters_to(kafka::setup(&topic), dead.name()).set("key.secret", SECRET);
    dies_and_comes_back(&setup, &topic);
}

#[test]
fn a_letter_of_sqs_is_redriven() {
    let (queue, dead) = (SqsQueue::create("redrive", &[]), SqsQueue::create("redrive-dead", &[]));
    let setup = with_redis(sqs::setup(&queue), Redis::shared()).set("scope", "redrive-sqs");
    let setup = letters_to(setup, &dead.url);
    dies_and_comes_back(&setup, &queue);
}

#[test]
fn a_letter_of_pubsub_is_redriven() {
    let subscription = Subscription::create("redrive", &json!({}));
    let dead = Subscription::create("redrive-dead", &json!({}));
    let setup = with_redis(pubsub::setup(&subscription), Redis::shared()).set("scope", "redrive-pubsub");
    let setup = letters_to(setup, &dead.topic);
    // Letters are received from a subscription of their topic.
    dies_and_comes_back_from(&setup, &subscription, &["--from", &dead.full_name]);
}

#[test]
fn a_letter_in_a_file_is_redriven() {
    let setup = worker().set("source.file.follow", false);
    let scene = crate::stage::scene(&setup, &[dies_once(), orders::order("well", &json!({}))]);
    assert_eq!(scene.run_to_end().code(), Some(3));
    assert_eq!(told(&redrive(&scene, &[])), "redriven=1 resolved=0 left=0");
    assert_eq!(scene.run_to_end().code(), Some(0));
    assert_eq!((scene.count(Kind::Start)["dies-once"], scene.count(Kind::Effect)["dies-once"]), (4, 1));
    assert_eq!(told(&redrive(&scene, &[])), "redriven=0 resolved=0 left=0");
}

#[test]
fn nothing_is_moved_without_consent() {
    let scene = crate::stage::scene(&worker(), &[]);
    let ended = scene.execute(&["dlq", "redrive", "onceward.toml"]);
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("--yes"), "{ended:#?}");
}
