//! Handlers that outlast their lease, and processes that are paused beyond it.

use std::time::Duration;

use onceward_test_support::chance::Chance;
use onceward_test_support::effects::{Kind, Note};
use onceward_test_support::orders::{Orders, order};
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::{Scene, joined};
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::stage::{PATIENCE, scene, worker};
use crate::transactions::{EFFECTS, assert_exact, rows, sql};

/// A scene for two programs on one database, each with a copy of the input of its own.
fn two_of_them(setup: &Setup, lines: &[String]) -> Scene {
    let scene = scene(setup, lines);
    scene.write("other.ndjson", &joined(lines));
    scene.write("other.toml", setup.clone().set("source.file.path", "other.ndjson").text().as_bytes());
    scene
}

fn of_kind(scene: &Scene, kind: Kind) -> Vec<Note> {
    scene.notes().into_iter().filter(|note| note.kind == kind).collect()
}

#[test]
fn a_handler_six_times_longer_than_the_lease_runs_once() {
    // Long enough for a disk that others write to, too, to take a renewal in time.
    let lines = [order("long", &json!({"ms": 18_000}))];
    let scene = two_of_them(&worker().set("store.sqlite.lease", "3s"), &lines);
    let first = scene.run();
    until("its run", PATIENCE, || of_kind(&scene, Kind::Start).len() == 1);
    let second = scene.run_file("other.toml");
    let (first, second) = (first.wait_within(PATIENCE), second.wait_within(PATIENCE));
    assert_eq!((first.code(), second.code()), (Some(0), Some(0)), "{first:#?} {second:#?}");
    assert_eq!((first.summary("handled"), first.summary("duplicates")), (1, 0));
    assert_eq!((second.summary("handled"), second.summary("duplicates")), (0, 1));
    assert_eq!(of_kind(&scene, Kind::Start).len(), 1);
    assert_eq!(of_kind(&scene, Kind::Effect).len(), 1);
}

/// The effect has happened and the completion is on its way when the process is paused: a lock keeps it from arriving.
#[test]
fn a_completion_that_arrives_after_a_pause_beyond_the_lease_is_fenced() {
    // Half of the lease for the lock to come in between, and as much for the late completion to meet the other's run.
    let lines = [order("slow", &json!({"ms": 1000}))];
    let scene = two_of_them(&worker().set("store.sqlite.lease", "2s"), &lines);
    let paused = scene.run();
    until("its run", PATIENCE, || of_kind(&scene, Kind::Start).len() == 1);
    let mut lock = scene.database();
    lock.execute("BEGIN IMMEDIATE");
    until("its effect", PATIENCE, || of_kind(&scene, Kind::Effect).len() == 1);
    std::thread::sleep(Duration::from_millis(100));
    paused.stop();
    lock.execute("ROLLBACK");
    let other = scene.run_file("other.toml");
    until("the other's run", PATIENCE, || of_kind(&scene, Kind::Start).len() == 2);
    paused.go_on();
    let (paused, other) = (paused.wait_within(PATIENCE), other.wait_within(PATIENCE));
    assert_eq!((paused.code(), other.code()), (Some(0), Some(0)), "{paused:#?} {other:#?}");
    assert_eq!((paused.summary("handled"), paused.summary("duplicates")), (0, 1), "{paused:#?}");
    assert_eq!(paused.summary("suspected-double-effects"), 1, "the case is counted: {paused:#?}");
    assert_eq!((other.summary("handled"), other.summary("duplicates")), (1, 0), "{other:#?}");
    assert_newest_completed(&scene);
}

/// Two runs, the second with the larger fence, and that one is what the store remembers.
fn assert_newest_completed(scene: &Scene) {
    let [late, newer] = &of_kind(scene, Kind::Start)[..] else { panic!("two runs") };
    assert!(late.fence < newer.fence, "the fence tells them apart: {late:?} {newer:?}");
    let stored = scene.database().number("SELECT fence FROM onceward_keys WHERE state = 4");
    assert_eq!(u64::try_from(stored), Ok(newer.fence), "the late completion did not overwrite the newer one");
}

#[test]
fn a_process_paused_beyond_its_lease_is_fenced_and_acks_only_what_the_other_has_completed() {
    let lines = [order("slow", &json!({"ms": 1500}))];
    let scene = two_of_them(&worker(), &lines);
    let paused = scene.run();
    until("its run", PATIENCE, || of_kind(&scene, Kind::Start).len() == 1);
    paused.stop();
    let other = scene.run_file("other.toml");
    // The paused one's worker continues, and the other takes over once the lease is over.
    until("both runs", PATIENCE, || {
        of_kind(&scene, Kind::Start).len() == 2 && of_kind(&scene, Kind::Effect).len() == 1
    });
    paused.go_on();
    let (paused, other) = (paused.wait_within(PATIENCE), other.wait_within(PATIENCE));
    assert_eq!((paused.code(), other.code()), (Some(0), Some(0)), "{paused:#?} {other:#?}");
    assert_eq!((paused.summary("handled"), paused.summary("duplicates")), (0, 1), "its completion was late");
    assert_eq!((other.summary("handled"), other.summary("duplicates")), (1, 0));
    assert_newest_completed(&scene);
}

#[test]
fn processes_paused_at_any_moment_never_leave_a_second_row() {
    let mut chance = Chance::new();
    let orders = Orders::with_copies(900, 100, &json!({"steps": 20000}), &mut chance);
    let scene = two_of_them(&sql(), &orders.lines);
    scene.database().execute(EFFECTS);
    let mut database = scene.database();
    let both = [scene.run(), scene.run_file("other.toml")];
    for pause in 0..4 {
        let before = rows(&mut database);
        until("progress", PATIENCE, || rows(&mut database) > before + 10);
        std::thread::sleep(chance.millis(0..20));
        pause_beyond_the_lease(&both[pause % 2]);
    }
    let [one, other] = both.map(|running| running.wait_within(PATIENCE));
    assert_eq!((one.code(), other.code()), (Some(0), Some(0)), "{one:#?} {other:#?}");
    assert_exact(&scene, &orders.ids);
    // A commit whose outcome a pause made unknown is found completed by the next claim: a duplicate, not handled.
    assert!(one.summary("handled") + other.summary("handled") <= 800);
    assert_eq!(scene.letters().len(), 0);
}

fn pause_beyond_the_lease(running: &Running) {
    running.stop();
    std::thread::sleep(Duration::from_millis(1300));
    running.go_on();
}
