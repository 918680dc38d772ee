//! The first signal drains, the second ends, and what is stuck is cut at the deadline.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::scene::{ORDERS, Scene, until, wait};

/// Each run records its begin, takes a moment, and records its end.
const SLOW: &str =
    r#"command = ["sh", "-c", "echo begun >> begun.log; sleep 0.3; echo done >> effects.log"]"#;

/// Each run records its process id, and does not end.
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
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
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
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let scene = scene(STUCK, "");
        let running = scene.start(scene.command("run @"));
        wait("runs", || scene.lines("begun.log").len() >= 4);
        running.signal(Signal::TERM);
        wait("the drain begins", || running.stderr().contains("draining"));
        // Some senders signal a process and its group: that is one request.
        running.signal(second);
        std::thread::sleep(Duration::from_millis(1_200));
        assert!(running.is_running(), "repeats within a second count once");
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

/// Neither input's end nor a signal ends them.
const STUBBORN: &str =
    r#"command = ["sh", "-c", "trap '' TERM; echo $$ >> begun.log; while :; do sleep 1; done"]"#;

#[test]
fn a_shutdown_keeps_to_its_time_whatever_its_processes_do() {
    for handler in ["exec", "worker"] {
        let orders: String = (0..50).map(|id| format!("{{\"id\":{id}}}\n")).collect();
        let pipeline = "[pipeline]\nconcurrency = 4\ndrain_timeout = '1s'\ncancel_grace = '2s'\n";
        let scene =
            Scene::new(&format!("{ORDERS}[store.memory]\n[handler.{handler}]\n{STUBBORN}\n{pipeline}"));
        scene.write("orders.ndjson", &orders);
        let running = scene.start(scene.command("run @"));
        wait("runs", || scene.lines("begun.log").len() >= 4);
        running.signal(Signal::TERM);
        let sent = Instant::now();
        let ended = running.end();
        // The drain, the grace and the time to close everything, with much room for a machine that is busy.
        assert!(sent.elapsed() < Duration::from_secs(10), "{handler}: {:?}: {ended:?}", sent.elapsed());
        assert!(scene.lines("dead.ndjson").is_empty(), "{handler}: {ended:?}");
        all_gone(&scene);
    }
}

#[test]
fn a_signal_to_all_processes_of_the_service_charges_no_message() {
    // A shell that ends by the signal, and one that passes it on as an exit code.
    for handler in [
        r#"command = ["sh", "-c", "echo $$ >> begun.log; exec sleep 60"]"#,
        r#"command = ["sh", "-c", "trap 'exit 143' TERM; echo $$ >> begun.log; while :; do sleep 0.05; done"]"#,
    ] {
        let scene = scene(handler, "[retry]\nmax_attempts = 1\n");
        let running = scene.start(scene.command("run @"));
        wait("runs", || scene.lines("begun.log").len() >= 4);
        // The processes first: they are faster than the program, and it must not be in a hurry to judge them.
        for process in scene.lines("begun.log") {
            let process = Pid::from_raw(process.parse().unwrap()).unwrap();
            let _ = kill_process(process, Signal::TERM);
        }
        running.signal(Signal::TERM);
        let ended = running.end();
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert!(ended.stdout.contains(" dead-lettered=0"), "{ended:?}");
        assert!(scene.lines("dead.ndjson").is_empty(), "{ended:?}");
    }
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_so() {
    let scene = scene(SLOW, "");
    let program = scene.command("run @");
    let mut command = std::process::Command::new("nohup");
    command
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir("/")
        .stdin(std::process::Stdio::null());
    let running = scene.start(command);
    wait("runs", || scene.lines("begun.log").len() >= 4);
    running.signal(Signal::HUP);
    wait("goes on", || scene.effects().len() > 20);
    assert!(!running.stderr().contains("draining"), "{}", running.stderr());
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

fn all_gone(scene: &Scene) {
    for process in scene.lines("begun.log") {
        let stat = format!("/proc/{process}/stat");
        until("the process is gone", || match std::fs::read_to_string(&stat) {
            Err(_) => Some(()),
            // Ended, and not yet reaped by the process that inherited it.
            Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')).then_some(()),
        });
    }
}
