//! Transforms of one group that join, leave, are paused and killed: each record has one committed result.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use onceward_test_support::chance::Chance;
use onceward_test_support::orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::disturbed::{Members, PARTITIONS, counted, orders, size};
use super::topic::Topic;
use crate::pair::{LONG, Waiting, stop};

const TRANSFORM: &str = env!("CARGO_BIN_EXE_transform-under-test");

fn start(scene: &Scene, from: &Topic<'_>, to: &Topic<'_>, id: usize) -> Running {
    let bootstrap = from.broker.bootstrap();
    let id = format!("{}-{id}", from.name);
    scene.start(&mut scene.command(&[&bootstrap, &from.name, &to.name, &from.name, &id]))
}

/// A member that was paused finds its transaction refused. A member that dies leaves one open, which ends when another takes
/// over its id, or by its own timeout.
#[test]
#[allow(clippy::print_stdout)]
fn each_record_has_one_committed_result_whatever_is_killed_or_paused() {
    let (from, to) = (Topic::create("transform", PARTITIONS), Topic::create("transform.results", 2));
    // The sixth would leave a transaction open at the end, to be waited for.
    let (messages, disturbances) = size((12_000, 5));
    let (lines, _) = orders(messages, &mut Chance::new());
    let scene = Scene::new(TRANSFORM);
    let start = |id| start(&scene, &from, &to, id);
    let committed = || {
        let sum = from.committed().map_or(0, |own| own.iter().filter(|own| **own > 0).sum());
        usize::try_from(sum).expect("a sum of offsets")
    };
    let (done, began) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|threads| {
        let watching = threads.spawn(|| from.watch(&done));
        let mut members = Members::two(&start, || ());
        members.under_load(&from, &lines, disturbances, committed);
        until("no lag", LONG, || from.is_empty());
        members.stop();
        done.store(true, Ordering::Relaxed);
        assert!(watching.join().expect("offsets that never go back") > 20, "it hardly looked");
    });
    println!("{messages} records, {disturbances} disturbances: {:?}", began.elapsed());
    until("no open transaction", LONG, || to.is_stable());
    let results = counted(to.records().into_iter().map(|result| result.payload));
    let twice: Vec<_> = results.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "results of one record: {twice:?}");
    assert_eq!(results.len(), messages, "records without a result");
}

#[test]
fn a_broker_that_is_killed_and_comes_back_leaves_one_result_for_each_record() {
    let mut broker = onceward_test_servers::kafka::Kafka::start();
    let scene = Scene::new(TRANSFORM);
    let lines: Vec<_> = (0..6_000).map(|number| orders::order(&format!("{number:04}"), &json!({}))).collect();
    let running = {
        let (from, to) =
            (Topic::create_on(&broker, "restart", 2), Topic::create_on(&broker, "restart.results", 1));
        from.publish(&lines);
        let running = start(&scene, &from, &to, 0);
        let some = || from.committed().is_some_and(|own| own.iter().sum::<i64>() >= 1_000);
        until("committed records", LONG, some);
        running
    };
    broker.kill();
    broker.start_again();
    let (from, to) = (Topic::named(&broker, "restart", 2), Topic::named(&broker, "restart.results", 1));
    until("no lag", LONG, || from.is_empty());
    stop(vec![running]);
    until("no open transaction", LONG, || to.is_stable());
    let mut results: Vec<_> = to.records().into_iter().map(|result| result.payload).collect();
    results.sort();
    let all = results.len();
    results.dedup();
    assert_eq!((all, results.len()), (lines.len(), lines.len()));
}
