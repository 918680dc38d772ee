//! Effects in Postgres together with their positions, by two processes that are killed and paused in turn: one for each record.

use std::collections::BTreeMap;
use std::time::Duration;

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::orders;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::SESSION_MS;
use super::topic::Topic;
use crate::pair::{LONG, Waiting, stop};

const EFFECTS: &str = env!("CARGO_BIN_EXE_effects-under-test");

fn start(scene: &Scene, topic: &Topic<'_>, server: &Postgres, more: &[&str]) -> Running {
    let (bootstrap, url) = (topic.broker.bootstrap(), server.url("postgres"));
    scene.start(&mut scene.command(&[&[&bootstrap[..], &topic.name, &topic.name, &url], more].concat()))
}

/// Publishes each of `shares`, and after each but the last kills or pauses one of two processes in the middle of it; ends when
/// there are `effects` and no lag.
fn disturb(
    topic: &Topic<'_>,
    server: &Postgres,
    scene: &Scene,
    more: &[&str],
    shares: &[Vec<String>],
    effects: usize,
) {
    let mut chance = Chance::new();
    let mut running: Vec<_> = (0..2).map(|_| start(scene, topic, server, more)).collect();
    let count = || server.sql("SELECT count(*) FROM effects").trim().parse::<usize>().expect("a count");
    for (number, share) in shares.iter().enumerate() {
        let had = count();
        topic.publish(share);
        if number + 1 == shares.len() {
            break;
        }
        until("effects", LONG, || count() >= had + effects / shares.len() / 5);
        std::thread::sleep(chance.millis(0..50));
        if number % 3 == 2 {
            // Its open transaction is of an epoch that is over when it goes on.
            running[number % 2].stop();
            std::thread::sleep(Duration::from_millis(SESSION_MS.unsigned_abs() * 2));
            running[number % 2].go_on();
        } else {
            assert_eq!(running.remove(0).kill().signal(), Some(9));
            running.push(start(scene, topic, server, more));
        }
    }
    until("all effects", LONG, || count() >= effects);
    until("no lag", LONG, || topic.is_empty());
    stop(running);
}

/// How many rows each has.
fn effects(server: &Postgres) -> BTreeMap<String, u32> {
    let mut effects = BTreeMap::new();
    for name in server.sql("SELECT * FROM effects").lines() {
        *effects.entry(name.to_owned()).or_default() += 1;
    }
    effects
}

#[test]
fn each_record_has_one_effect_in_postgres_whatever_is_killed_or_paused_and_whatever_the_broker_says() {
    const SHARE: usize = 1_000;
    let server = Postgres::start();
    server.sql("CREATE TABLE effects (place text NOT NULL)");
    let topic = Topic::create("effects", 4);
    let lines: Vec<_> = (0..SHARE * (kills(6) + 1))
        .map(|number| orders::order(&format!("{number:05}"), &json!({})))
        .collect();
    let shares: Vec<_> = lines.chunks(SHARE).map(<[String]>::to_vec).collect();
    let scene = Scene::new(EFFECTS);
    disturb(&topic, &server, &scene, &[], &shares, lines.len());

    // The broker forgets where the group stands: the database knows.
    topic.forget_offsets();
    let again = start(&scene, &topic, &server, &[]);
    until("no lag", LONG, || topic.is_empty());
    stop(vec![again]);
    let effects = effects(&server);
    let twice: Vec<_> = effects.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "effects of one record: {twice:?}");
    assert_eq!(effects.len(), lines.len(), "records without an effect");
}

#[test]
fn each_key_has_one_effect_in_postgres_though_one_in_ten_is_sent_twice_to_whichever_partition_and_members_die()
 {
    const SHARE: usize = 1_000;
    let server = Postgres::start();
    server.sql("CREATE TABLE effects (id text NOT NULL)");
    let topic = Topic::create("keyed-effects", 4);
    let mut chance = Chance::new();
    let (mut shares, mut distinct) = (Vec::<Vec<_>>::new(), 0);
    for _ in 0..=kills(5) {
        let first = distinct;
        distinct += SHARE - SHARE / 10;
        let mut share: Vec<_> = (first..distinct).collect();
        for copy in 0..SHARE / 10 {
            let earliest = if copy % 2 == 0 { first } else { 0 };
            share.insert(chance.number(0..share.len()), chance.number(earliest..distinct));
        }
        // What a record is partitioned by is its lane: a copy may stand on any partition, close behind or far.
        let mut line =
            |number| orders::order(&format!("{number:05}"), &json!({"lane": chance.number(0..64)}));
        shares.push(share.into_iter().map(&mut line).collect());
    }
    let scene = Scene::new(EFFECTS);
    disturb(&topic, &server, &scene, &["keys"], &shares, distinct);
    let effects = effects(&server);
    let twice: Vec<_> = effects.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "effects of one key: {twice:?}");
    assert_eq!(effects.len(), distinct, "keys without an effect");
    let kept = server.sql("SELECT count(*) FROM onceward.keys WHERE state = 4");
    assert_eq!(kept.trim().parse(), Ok(distinct), "completed keys");
}
