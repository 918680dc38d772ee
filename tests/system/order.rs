//! Order within a key: kept through failures, kills and a second try of the whole file.

use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use serde_json::json;

use crate::stage::{PATIENCE, ledger_of, scene, worker};

pub(crate) const LANES: usize = 8;
const LONG: usize = 40;

/// Lines of all lanes in turn; in each lane every tenth fails once.
pub(crate) fn lines(lanes: usize, long: usize) -> (Vec<String>, Vec<Produced>) {
    let mut lines = Vec::new();
    let mut produced = Vec::new();
    for number in 0..long {
        for lane in 0..lanes {
            let id = format!("{lane}-{number:03}");
            let fails = json!({"lane": lane, "ms": 3, "do": "fail", "times": 1});
            let well = json!({"lane": lane, "ms": 3});
            lines.push(order(&id, if number % 10 == 5 { &fails } else { &well }));
            produced.push(Produced { key: id, order_key: Some(lane.to_string()), confirmed: true });
        }
    }
    (lines, produced)
}

#[test]
fn first_effects_of_an_order_key_come_in_its_order_through_failures_and_kills() {
    let mut chance = Chance::new();
    let kills = kills(3);
    // Work enough for each kill.
    let (lines, produced) = lines(LANES, LONG * kills.div_ceil(3));
    let setup = worker().set("pipeline.ordering", "key").set("pipeline.order_by", "json:/lane");
    let scene = scene(&setup, &lines);
    for kill in 0..kills {
        let least = (produced.len() - 60) * (kill + 1) / (kills + 1);
        let running = scene.run();
        until("effects", PATIENCE, || scene.count(Kind::Effect).len() >= least);
        std::thread::sleep(chance.millis(0..30));
        assert_eq!(running.kill().signal(), Some(9));
    }
    let ended = scene.run_to_end();
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    let ledger = ledger_of(&scene, produced);
    assert_eq!((ledger.lost(), ledger.unasked()), (vec![], vec![]));
    assert_eq!(ledger.out_of_order(), []);
    assert_eq!(ledger.overlapping(), [], "a run began before the earlier one of its key had ended");
}

#[test]
fn without_an_order_the_same_input_is_not_held_up() {
    let (lines, produced) = lines(LANES, LONG);
    let scene = scene(&worker(), &lines);
    let ended = scene.run_to_end();
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), produced.len() as u64), "{ended:#?}");
    // The failures are overtaken: that the check above can fail is shown by this one.
    assert_ne!(ledger_of(&scene, produced).out_of_order(), []);
}
