//! A second member that joins while the first one is busy with slow handlers, and a topic that is recreated under the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders};
use onceward_test_support::process::until;
use serde_json::json;

use super::setup;
use super::topic::Topic;
use crate::pair::{LONG, Waiting, scene, stop};

const PARTITIONS: i32 = 8;
const PROCESSES: i64 = 8;

#[test]
#[allow(clippy::print_stdout)]
fn a_second_member_gets_its_partitions_while_the_first_is_busy_and_commits_go_on() {
    let topic = Topic::create("joins", PARTITIONS);
    let orders = Orders::with_copies(600, 0, &json!({"ms": 300}), &mut Chance::new());
    topic.publish(&orders.lines);
    let setup = setup(&topic)
        .set("pipeline.ordering", "partition")
        .without("pipeline.order_by")
        .set("handler.worker.processes", PROCESSES)
        .set("pipeline.concurrency", PROCESSES)
        .set("store.redis.lease", "30s");
    let scene = scene(&setup);
    let workers = || scene.notes().iter().map(|note| note.worker).collect::<std::collections::BTreeSet<_>>();
    let first = scene.run();
    until("the first is busy", LONG, || scene.count(Kind::Effect).len() >= 40);
    let known = workers();
    let done = AtomicBool::new(false);
    let (joined, gap, second) = std::thread::scope(|threads| {
        let commits = threads.spawn(|| longest_gap(&topic, &done));
        let began = Instant::now();
        let second = scene.run();
        until("the second works", LONG, || workers().difference(&known).next().is_some());
        let joined = began.elapsed();
        until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
        done.store(true, Ordering::Relaxed);
        (joined, commits.join().expect("commits are watched"), second)
    });
    until("no lag", LONG, || topic.is_empty());
    stop(vec![first, second]);
    assert!(scene.count(Kind::Effect).values().all(|effects| *effects == 1), "an effect is doubled");
    // Figures for runs with --nocapture.
    println!("the second member worked after {joined:?}; the longest time without a commit: {gap:?}");
}

/// The longest time in which no partition's committed offset grew.
fn longest_gap(topic: &Topic<'_>, done: &AtomicBool) -> Duration {
    let (mut last, mut at, mut longest) = (None, Instant::now(), Duration::ZERO);
    while !done.load(Ordering::Relaxed) {
        let now = topic.committed();
        if now.is_some() && now != last {
            if last.is_some() {
                longest = longest.max(at.elapsed());
            }
            (last, at) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    longest
}

#[test]
fn a_topic_that_is_recreated_under_the_program_loses_no_record() {
    const ROUNDS: usize = 5;
    const EACH: usize = 100;
    let topic = Topic::create("recreated", 2);
    let scene = scene(&setup(&topic));
    let running = scene.run();
    for round in 0..=ROUNDS {
        let line =
            |number| orders::order(&format!("order-{round}-{number:03}"), &json!({"lane": number, "ms": 1}));
        topic.publish(&(0..EACH).map(line).collect::<Vec<_>>());
        until("the effects of a round", LONG, || scene.count(Kind::Effect).len() == EACH * (round + 1));
        if round < ROUNDS {
            topic.recreate();
        }
    }
    until("no lag", LONG, || topic.is_empty());
    assert!(running.stderr().contains("WARN"), "nothing is logged: {}", running.stderr());
    stop(vec![running]);
}
