//! Two transforms of one group, killed and paused in turn: each record has one committed result.

use std::collections::BTreeMap;
use std::time::Duration;

use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::SESSION_MS;
use super::topic::Topic;
use crate::pair::{LONG, Waiting, stop};

const TRANSFORM: &str = env!("CARGO_BIN_EXE_transform-under-test");
const PARTITIONS: i32 = 4;

fn start(scene: &Scene, from: &Topic<'_>, to: &Topic<'_>, id: usize) -> Running {
    let bootstrap = from.broker.bootstrap();
    let id = format!("{}-{id}", from.name);
    scene.start(&mut scene.command(&[&bootstrap, &from.name, &to.name, &from.name, &id]))
}

#[test]
fn each_record_has_one_committed_result_whatever_is_killed_or_paused() {
    let (from, to) = (Topic::create("transform", PARTITIONS), Topic::create("transform.results", 2));
    let (kills, mut chance) = (kills(6), Chance::new());
    let messages = 2_000 * (kills + 1);
    let lines: Vec<_> =
        (0..messages).map(|number| orders::order(&format!("{number:05}"), &json!({}))).collect();
    let scene = Scene::new(TRANSFORM);
    let mut running: Vec<_> = (0..2).map(|id| start(&scene, &from, &to, id)).collect();
    let committed = || from.committed().map_or(0, |own| own.iter().filter(|own| **own > 0).sum());
    for (kill, share) in lines.chunks(2_000).enumerate() {
        from.publish(share);
        if kill == kills {
            break;
        }
        let least = i64::try_from(2_000 * kill + 500).expect("a small number");
        until("committed records", LONG, || committed() >= least);
        std::thread::sleep(chance.millis(0..50));
        let id = kill % 2;
        if kill % 3 == 2 {
            // As after a long pause of the machine: the other one takes over, and this one's transaction is refused.
            running[id].stop();
            std::thread::sleep(Duration::from_millis(SESSION_MS.unsigned_abs() * 2));
            running[id].go_on();
        } else {
            assert_eq!(running.remove(id).kill().signal(), Some(9));
            running.insert(id, start(&scene, &from, &to, id));
        }
    }
    until("no lag", LONG, || from.is_empty());
    stop(running);
    let mut results = BTreeMap::<_, u32>::new();
    for (result, _) in to.records() {
        *results.entry(result).or_default() += 1;
    }
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
    let mut results: Vec<_> = to.records().into_iter().map(|(result, _)| result).collect();
    results.sort();
    let all = results.len();
    results.dedup();
    assert_eq!((all, results.len()), (lines.len(), lines.len()));
}
