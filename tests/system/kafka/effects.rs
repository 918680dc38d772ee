//! Effects in Postgres together with their positions, and with keys as well, by members that join, leave, are paused and killed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::chance::Chance;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::disturbed::{Members, PARTITIONS, counted, orders, size};
use super::topic::Topic;
use crate::pair::{LONG, Waiting, stop};

const EFFECTS: &str = env!("CARGO_BIN_EXE_effects-under-test");

/// A row is an effect; the table has no constraint.
fn server() -> Postgres {
    let server = Postgres::start();
    server.sql("CREATE TABLE effects (place text NOT NULL, id text NOT NULL, at bigserial)");
    server
}

fn start(scene: &Scene, topic: &Topic<'_>, server: &Postgres, more: &[&str]) -> Running {
    let (bootstrap, url) = (topic.broker.bootstrap(), server.url("postgres"));
    scene.start(&mut scene.command(&[&[&bootstrap[..], &topic.name, &topic.name, &url], more].concat()))
}

/// Has `lines` processed by members that are disturbed, until there are `effects` and no lag; each effect's place and id, in order.
#[allow(clippy::print_stdout)]
fn processed(
    scene: &Scene,
    topic: &Topic<'_>,
    server: &Postgres,
    more: &[&str],
    (lines, disturbances, effects): (&[String], usize, usize),
) -> Vec<(String, String)> {
    let start = |_| start(scene, topic, server, more);
    let count = || server.sql("SELECT count(*) FROM effects").trim().parse::<usize>().expect("a count");
    let (done, began) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|threads| {
        let watching = threads.spawn(|| topic.watch(&done));
        let mut members = Members::two(&start, || ());
        members.under_load(topic, lines, disturbances, count);
        until("all effects", LONG, || count() >= effects);
        until("no lag", LONG, || topic.is_empty());
        members.stop();
        done.store(true, Ordering::Relaxed);
        assert!(watching.join().expect("offsets that never go back") > 20, "it hardly looked");
    });
    println!("{}: {} records, {disturbances} disturbances: {:?}", topic.name, lines.len(), began.elapsed());
    rows(server)
}

fn rows(server: &Postgres) -> Vec<(String, String)> {
    let rows = server.sql("SELECT place || ' ' || id FROM effects ORDER BY at");
    let row = |row: &str| row.split_once(' ').map(|(place, id)| (place.to_owned(), id.to_owned()));
    rows.lines().map(|line| row(line).expect("a place and an id")).collect()
}

/// A producer's copies are records of their own here: only positions are compared.
#[test]
fn each_record_has_one_effect_in_postgres_whatever_is_killed_or_paused_and_whatever_the_broker_says() {
    let (server, scene) = (server(), Scene::new(EFFECTS));
    let topic = Topic::create("effects", PARTITIONS);
    let (messages, disturbances) = size((7_000, 6));
    let (lines, produced) = orders(messages, &mut Chance::new());
    processed(&scene, &topic, &server, &[], (&lines, disturbances, lines.len()));

    // The broker loses the group's offsets: the database has the positions.
    topic.forget_offsets();
    let again = start(&scene, &topic, &server, &[]);
    until("no lag", LONG, || topic.is_empty());
    stop(vec![again]);

    let rows = rows(&server);
    let places = counted(rows.iter().map(|(place, _)| place));
    let twice: Vec<_> = places.into_iter().filter(|(_, count)| *count > 1).collect();
    assert!(twice.is_empty(), "effects of one record: {twice:?}");
    let effects = counted(rows.iter().map(|(_, id)| id.clone()));
    assert_eq!(effects, counted(produced.into_iter().map(|own| own.key)), "effects of each id");
    let mut last = BTreeMap::new();
    for (place, _) in &rows {
        let (partition, offset) = place.split_once(':').expect("PARTITION:OFFSET");
        let offset: u64 = offset.parse().expect("an offset");
        let before = last.insert(partition, offset);
        assert!(before < Some(offset), "partition {partition}: {offset} came after {before:?}");
    }
}

#[test]
fn each_key_has_one_effect_in_postgres_though_one_in_ten_is_sent_twice_to_whichever_partition_and_members_die()
 {
    let (server, scene) = (server(), Scene::new(EFFECTS));
    let topic = Topic::create("keyed-effects", PARTITIONS);
    let (messages, disturbances) = size((6_000, 6));
    let mut chance = Chance::new();
    let (_, produced) = orders(messages, &mut chance);
    // The partition of a record follows from its lane: a copy may be in any partition, close behind or far.
    let mut line = |id: &str| order(id, &json!({"lane": chance.number(0..64)}));
    let lines: Vec<_> = produced.iter().map(|own| line(&own.key)).collect();
    let expected: BTreeMap<_, _> = produced.into_iter().map(|own| (own.key, 1)).collect();
    let rows = processed(&scene, &topic, &server, &["keys"], (&lines, disturbances, expected.len()));
    let effects = counted(rows.into_iter().map(|(_, id)| id));
    let twice: Vec<_> = effects.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "effects of one key: {twice:?}");
    assert_eq!(effects, expected, "keys without an effect");
    let kept = server.sql("SELECT count(*) FROM onceward.keys WHERE state = 4");
    assert_eq!(kept.trim().parse(), Ok(expected.len()), "completed keys");
}
