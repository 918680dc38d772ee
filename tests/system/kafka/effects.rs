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

fn start(scene: &Scene, topic: &Topic<'_>, server: &Postgres) -> Running {
    let (bootstrap, url) = (topic.broker.bootstrap(), server.url("postgres"));
    scene.start(&mut scene.command(&[&bootstrap, &topic.name, &topic.name, &url]))
}

#[test]
fn each_record_has_one_effect_in_postgres_whatever_is_killed_or_paused_and_whatever_the_broker_says() {
    const SHARE: usize = 1_000;
    let server = Postgres::start();
    server.sql("CREATE TABLE effects (place text NOT NULL)");
    let topic = Topic::create("effects", 4);
    let (kills, mut chance) = (kills(6), Chance::new());
    let lines: Vec<_> =
        (0..SHARE * (kills + 1)).map(|number| orders::order(&format!("{number:05}"), &json!({}))).collect();
    let scene = Scene::new(EFFECTS);
    let mut running: Vec<_> = (0..2).map(|_| start(&scene, &topic, &server)).collect();
    let count = || server.sql("SELECT count(*) FROM effects").trim().parse::<usize>().expect("a count");
    for (kill, share) in lines.chunks(SHARE).enumerate() {
        topic.publish(share);
        if kill == kills {
            break;
        }
        until("effects", LONG, || count() >= SHARE * kill + 200);
        std::thread::sleep(chance.millis(0..50));
        if kill % 3 == 2 {
            // Its open transaction is of an epoch that is over when it goes on.
            running[kill % 2].stop();
            std::thread::sleep(Duration::from_millis(SESSION_MS.unsigned_abs() * 2));
            running[kill % 2].go_on();
        } else {
            assert_eq!(running.remove(0).kill().signal(), Some(9));
            running.push(start(&scene, &topic, &server));
        }
    }
    until("all effects", LONG, || count() >= lines.len());
    until("no lag", LONG, || topic.is_empty());
    stop(running);

    // The broker forgets where the group stands: the database knows.
    topic.forget_offsets();
    let again = start(&scene, &topic, &server);
    until("no lag", LONG, || topic.is_empty());
    stop(vec![again]);
    let mut effects = BTreeMap::<_, u32>::new();
    for place in server.sql("SELECT place FROM effects").lines() {
        *effects.entry(place.to_owned()).or_default() += 1;
    }
    let twice: Vec<_> = effects.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "effects of one record: {twice:?}");
    assert_eq!(effects.len(), lines.len(), "records without an effect");
}
