//! The first signal drains, the second ends, and what is stuck is cut at the deadline.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::scene::{ORDERS, Scene, until, wait};

/// Each run says that it began, takes a moment, and says that it is done.
const SLOW: &str =
    r#"command = ["sh", "-c", "echo begun >> begun.log; sleep 0.3; echo done >> effects.log"]"#;

/// Each run says which process it is, and stays.
const STUCK: &str = r#"command = ["sh", "-c", "echo $$ >> begun.log; exec sleep 60"]"#;

fn scene(handler: &str, more: &str) -> Scene {
    let orders: String = (0..200).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    let pipeline = "[pipeline]\nconcurrency = 4\n";
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{handler}\n{pipeline}{more}"));
    scene.write("orders.ndjson", &orders);
    scene
}

#[test]
fn a_first_signal_lets_what_runs_end_and_starts_nothing_more() {
    for signal in [Signal::TERM, Signal::INT] {
        let scene = scene(SLOW, "");
        let running = scene.start(scene.command("run @"));
        wait("runs", || scene.lines("begun.log").len() >= 4);
        running.signal(signal);
        let ended = running.end();
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        let (begun, effects) = (scene.lines("begun.log").len(), scene.effects().len());
        assert!(begun == effects && begun < 100, "{begun} runs began and {effects} ended");
        assert!(ended.stdout.contains(&format!("handled={effects} ")), "{ended:?}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once_with_all_its_processes() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let scene = scene(STUCK, "");
        let running = scene.start(scene.command("run @"));
        wait("runs", || scene.lines("begun.log").len() >= 4);
        running.signal(Signal::TERM);
        wait("the drain begins", || running.stderr().contains("draining"));
        let sent = Instant::now();
        running.signal(second);
        let ended = running.end();
        assert_eq!(ended.code(), Some(code), "{ended:?}");
        assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
        all_gone(&scene);
    }
}

#[test]
fn what_is_stuck_is_cut_at_the_deadline_and_not_acked() {
    let scene = scene(STUCK, "drain_timeout = '200ms'\n");
    let running = scene.start(scene.command("run @"));
    wait("runs", || scene.lines("begun.log").len() >= 4);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code(), Some(124), "{ended:?}");
    assert!(ended.stdout.contains(" handled=0 ") && ended.stdout.contains(" abandoned=4"), "{ended:?}");
    all_gone(&scene);
}

fn all_gone(scene: &Scene) {
    for process in scene.lines("begun.log") {
        let stat = format!("/proc/{process}/stat");
        until("the process is gone", || match std::fs::read_to_string(&stat) {
            Err(_) => Some(()),
            // Ended, and not yet reaped by whoever inherited it.
            Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')).then_some(()),
        });
    }
}
