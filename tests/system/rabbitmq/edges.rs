//! Tests of problems that must be noticed before the first message is taken or the run ends: streams, missing places for
//! dead letters, wait queues of an earlier run; and of a second program that gets its share.

use std::collections::BTreeSet;

use lapin::types::AMQPValue;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::until;
use serde_json::json;

use super::queue::Queue;
use super::setup;
use crate::pair::{Waiting, scene, stop, with_redis};
use crate::stage::PATIENCE;

#[test]
fn a_stream_is_refused_by_run_and_check_and_keeps_its_messages() {
    let stream = Queue::declare("edges.stream", &[("x-queue-type", AMQPValue::LongString("stream".into()))]);
    stream.publish(&[orders::order("kept", &json!({}))]);
    let scene = scene(&with_redis(setup(&stream), Redis::shared()).set("scope", "stream"));
    let ended = scene.run().wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("streams are not supported"), "{ended:#?}");
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("streams are not supported"), "{checked:#?}");
    assert!(scene.count(Kind::Start).is_empty());
}

#[test]
fn a_place_for_dead_letters_that_is_not_there_is_refused_before_a_message_is_taken() {
    let queue = Queue::declare("edges.letters", &[]);
    queue.publish(&[orders::order("ill", &json!({"do": "permanent"}))]);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "letters")
        .set("policy.on_exhausted", "dead-letter");
    for to in ["edges.nowhere", "edges.no-exchange/key"] {
        let scene = scene(&setup.clone().set("dead_letter.to", to));
        let ended = scene.run().wait_within(PATIENCE);
        assert_eq!(ended.code(), Some(78), "{ended:#?}");
        assert!(ended.stderr.contains("dead_letter.to"), "{ended:#?}");
        let checked = scene.execute(&["check", "onceward.toml"]);
        assert_eq!(checked.code(), Some(1), "{checked:#?}");
        assert_eq!(queue.depth(), (1, 0));
    }
    // A start that fails takes nothing: each delivery would count against a quorum queue's delivery limit.
    assert!(!queue.was_delivered());
}

#[test]
fn a_run_until_empty_waits_for_messages_that_an_earlier_run_left_in_a_wait_queue() {
    let queue = Queue::declare("edges.waits", &[]);
    queue.publish(&[orders::order("late", &json!({"do": "fail", "times": 1}))]);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "edges-waits")
        .set("source.rabbitmq.wait_queues_from", "1s")
        .set("retry.initial", "12800ms")
        .set("retry.max", "12800ms")
        .set("retry.jitter", "none");
    let scene = scene(&setup);
    let first = scene.run();
    until("it was tried once", PATIENCE, || scene.count(Kind::Start).len() == 1);
    until("it waits", PATIENCE, || queue.is_empty());
    first.kill();
    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), 1), "{ended:#?}");
}

#[test]
fn a_second_program_gets_work_while_the_first_is_busy() {
    const PROCESSES: i64 = 4;
    let queue = Queue::declare("edges.shared", &[]);
    let orders = Orders::with_copies(120, 0, &json!({"ms": 200}), &mut Chance::new());
    queue.publish(&orders.lines);
    let setup = with_redis(setup(&queue).without("source.rabbitmq.prefetch"), Redis::shared())
        .set("scope", "shared")
        .set("pipeline.concurrency", PROCESSES)
        .set("handler.worker.processes", PROCESSES);
    let scene = scene(&setup);
    let workers = || scene.notes().iter().map(|note| note.worker).collect::<BTreeSet<_>>().len();
    let first = scene.run();
    until("the first works", PATIENCE, || workers() >= 4);
    let second = scene.run();
    until("the second has work", PATIENCE, || workers() > 4);
    until("all effects", PATIENCE, || scene.count(Kind::Effect).len() == orders.ids.len());
    stop(vec![first, second]);
}
