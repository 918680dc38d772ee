//! The first run, the second, and those that were killed in the middle.

use std::collections::BTreeSet;

use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::scene::joined;
use serde_json::json;

use crate::stage::{PATIENCE, each, exec, ids_of, in_flight, ledger, scene, worker};

#[test]
fn a_thousand_lines_with_three_hundred_copies_have_seven_hundred_effects_and_none_when_run_again() {
    let orders = Orders::with_copies(1000, 300, &json!({}), &mut Chance::new());
    let scene = scene(&worker(), &orders.lines);

    let first = scene.run_to_end();
    assert_eq!(first.code(), Some(0), "{first:#?}");
    let told =
        ["received", "handled", "duplicates", "retried", "dead-lettered"].map(|word| first.summary(word));
    assert_eq!(told, [1000, 700, 300, 0, 0]);
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));

    let again = scene.run_to_end();
    assert_eq!((again.code(), again.summary("received")), (Some(0), 0), "the kept offset is at the end");

    // Another file, so that only the keys identify duplicates.
    scene.write("copy.ndjson", &joined(&orders.lines));
    scene.configure(&worker().set("source.file.path", "copy.ndjson"));
    let copied = scene.run_to_end();
    let told = ["received", "handled", "duplicates"].map(|word| copied.summary(word));
    assert_eq!((copied.code(), told), (Some(0), [1000, 0, 1000]), "{copied:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn a_process_for_each_message_makes_each_effect_once() {
    let orders = Orders::with_copies(100, 30, &json!({}), &mut Chance::new());
    let scene = scene(&exec(), &orders.lines);
    let ended = scene.run_to_end();
    assert_eq!((ended.code(), ended.summary("handled"), ended.summary("duplicates")), (Some(0), 70, 30));
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn killed_in_the_middle_every_key_has_its_effect_and_only_those_in_flight_may_have_two() {
    let mut chance = Chance::new();
    let kills = kills(5);
    // Work enough for each kill.
    let times = kills.div_ceil(5);
    let orders = Orders::with_copies(1000 * times, 300 * times, &json!({"ms": 4}), &mut chance);
    let scene = scene(&worker(), &orders.lines);
    let mut excused = BTreeSet::new();
    for kill in 0..kills {
        // Work is left for each kill, wherever in it chance strikes.
        let most = (orders.ids.len() - 60) * (kill + 1) / kills;
        let running = scene.run();
        until("effects", PATIENCE, || effects_of_ids(&scene) >= most * 2 / 3);
        std::thread::sleep(chance.millis(0..60));
        let ended = running.kill();
        assert_eq!(ended.signal(), Some(9), "it ended before it was killed: {ended:#?}");
        let pending = in_flight(&scene);
        // Four run and as many may be on their way to their completion; those of earlier kills wait for their lease.
        assert!(pending.len() <= 8 * (kill + 1), "claimed without being about to start: {pending:?}");
        excused.extend(pending);
    }
    let ended = scene.run_to_end();
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    ledger(&scene, &orders.ids).verify(&ids_of(&scene, &excused));
    assert_eq!(scene.letters(), [] as [serde_json::Value; 0]);
    assert!(scene.count(Kind::Effect).values().all(|count| *count <= 1 + kills));
}

fn effects_of_ids(scene: &onceward_test_support::scene::Scene) -> usize {
    scene.count(Kind::Effect).len()
}
