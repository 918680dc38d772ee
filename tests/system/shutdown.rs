//! Signals: a drain loses nothing and leaves nothing claimed; what is stuck is left to the next run.

use std::time::{Duration, Instant};

use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{Orders, order};
use onceward_test_support::process::until;
use serde_json::json;

use crate::stage::{PATIENCE, each, exec, scene, worker};

/// Longer than any test waits: a claim that is left behind shows.
const LONG_LEASE: &str = "5m";

#[test]
fn a_drain_under_load_ends_with_0_and_the_next_run_waits_for_no_lease() {
    let orders = Orders::with_copies(600, 100, &json!({"ms": 20}), &mut Default::default());
    for setup in [worker(), exec()] {
        let scene = scene(&setup.set("store.sqlite.lease", LONG_LEASE), &orders.lines);
        let running = scene.run();
        until("load", PATIENCE, || scene.count(Kind::Effect).len() >= 50);
        running.terminate();
        let asked = Instant::now();
        let drained = running.wait_within(Duration::from_secs(5));
        assert_eq!(drained.code(), Some(0), "{drained:#?}");
        assert!(asked.elapsed() < Duration::from_secs(2), "handlers take 20 ms");
        let before = scene.count(Kind::Effect).len();
        assert!(before < orders.ids.len(), "nothing was left to drain");

        let rest = scene.run_to_end();
        assert_eq!(rest.code(), Some(0), "{rest:#?}");
        assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
        assert_eq!(scene.count(Kind::Start), each(&orders.ids, 1), "no run was cut");
    }
}

#[test]
fn a_stuck_handler_is_cut_at_the_drain_deadline_and_its_message_is_handled_by_the_next_run() {
    for setup in [worker(), exec()] {
        let lines = [order("stuck", &json!({"do": "hang", "times": 1})), order("well", &json!({}))];
        let scene = scene(&setup.set("pipeline.drain_timeout", "500ms"), &lines);
        let running = scene.run();
        until("both runs", PATIENCE, || scene.count(Kind::Start).len() == 2);
        until("the other's effect", PATIENCE, || scene.count(Kind::Effect).len() == 1);
        running.terminate();
        let cut = running.wait_within(Duration::from_secs(8));
        assert_eq!(cut.code(), Some(124), "{cut:#?}");
        assert_eq!(scene.count(Kind::Effect).get("stuck"), None);

        let rest = scene.run_to_end();
        assert_eq!(rest.code(), Some(0), "{rest:#?}");
        let ids = ["stuck".to_owned(), "well".to_owned()];
        assert_eq!(scene.count(Kind::Effect), each(&ids, 1), "it was acked without its effect");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("INT", "INT", 130), ("TERM", "INT", 130)] {
        let scene = scene(&worker(), &[order("stuck", &json!({"do": "hang", "times": 1}))]);
        let running = scene.run();
        until("its run", PATIENCE, || scene.count(Kind::Start).len() == 1);
        running.send(first);
        // Signals within a second of the first are the same request.
        std::thread::sleep(Duration::from_millis(1_200));
        let asked = Instant::now();
        running.send(second);
        let ended = running.wait_within(Duration::from_secs(5));
        assert_eq!(ended.code(), Some(code), "{first}, {second}: {ended:#?}");
        assert!(asked.elapsed() < Duration::from_secs(1), "not at once");

        let rest = scene.run_to_end();
        assert_eq!((rest.code(), scene.count(Kind::Effect)["stuck"]), (Some(0), 1), "{rest:#?}");
    }
}
