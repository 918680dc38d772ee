//! A database that is locked, or cannot be written: nothing starts, nothing is acked, and it recovers by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::scene::Scene;
use rustix::process::geteuid;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, each, scene, worker};
use crate::transactions::{EFFECTS, assert_exact, rows, sql};

const LOCKED: Duration = Duration::from_secs(10);

fn offset(scene: &Scene) -> i64 {
    scene.database().number("SELECT coalesce(max(position), 0) FROM onceward_checkpoints")
}

#[test]
fn while_the_database_is_locked_no_handler_starts_and_nothing_is_acked() {
    let orders = Orders::with_copies(400, 50, &json!({"ms": 20}), &mut Default::default());
    let scene = scene(&worker().set("retry.max_attempts", 1), &orders.lines);
    let running = scene.run();
    until("load", PATIENCE, || scene.count(Kind::Effect).len() >= 20);
    let mut lock = scene.database();
    lock.execute("BEGIN EXCLUSIVE");
    let locked = Instant::now();
    // What was claimed before runs to its end.
    std::thread::sleep(Duration::from_secs(1));
    let (started, acked) = (scene.count(Kind::Start).len(), offset(&scene));
    std::thread::sleep(LOCKED.saturating_sub(locked.elapsed()));
    assert_eq!(scene.count(Kind::Start).len(), started, "a handler started without a claim");
    assert_eq!(offset(&scene), acked);
    lock.execute("ROLLBACK");
    let healed = Instant::now();
    until("the next run", Duration::from_secs(7), || scene.count(Kind::Start).len() > started);
    let ended = running.wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
    assert_eq!(scene.letters(), [] as [Value; 0], "trouble of the store is no failure of a message");
    assert!(healed.elapsed() < PATIENCE);
}

#[test]
fn a_locked_database_costs_no_statement_its_attempt() {
    let orders = Orders::with_copies(400, 50, &json!({"steps": 100_000}), &mut Default::default());
    let scene = scene(&sql().set("retry.max_attempts", 1), &orders.lines);
    scene.database().execute(EFFECTS);
    let mut lock = scene.database();
    let running = scene.run();
    // Not by what was there a moment ago: a quick run is over before that is 20 rows more.
    for goal in [20, 100, 200] {
        until("progress", PATIENCE, || rows(&mut lock) > goal);
        lock.execute("BEGIN EXCLUSIVE");
        std::thread::sleep(Duration::from_millis(3500));
        lock.execute("ROLLBACK");
    }
    let ended = running.wait_within(PATIENCE);
    assert_eq!(scene.letters(), [] as [Value; 0], "trouble of the store is no failure of a message");
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_exact(&scene, &orders.ids);
}

#[test]
fn a_database_that_is_locked_at_the_start_is_waited_for() {
    let orders = Orders::of([("a", json!({})), ("b", json!({}))]);
    let scene = scene(&worker(), &orders.lines);
    assert_eq!(scene.execute(&["migrate", "onceward.toml"]).code(), Some(0));
    let mut lock = scene.database();
    lock.execute("BEGIN EXCLUSIVE");
    let running = scene.run();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(scene.count(Kind::Start).len(), 0);
    lock.execute("ROLLBACK");
    let ended = running.wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

/// A user without rights, since the tests may run as one that has all.
const NOBODY: u32 = 65534;

#[test]
fn a_database_that_cannot_be_written_is_one_clear_sentence() {
    let orders = Orders::of([("a", json!({}))]);
    let scene = scene(&worker(), &orders.lines);
    assert_eq!(scene.execute(&["migrate", "onceward.toml"]).code(), Some(0));
    let mut command = scene.command(&["run", "onceward.toml"]);
    let mode = |name: &str, mode| {
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(mode))
            .expect("the owner may set modes");
    };
    mode("onceward.db", 0o444);
    mode("", 0o555);
    if geteuid().is_root() {
        command.uid(NOBODY);
    }
    let ended = scene.start(&mut command).wait_within(PATIENCE);
    mode("", 0o755);
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert_eq!(scene.count(Kind::Start).len(), 0);
    let sentence = ended.stderr.lines().last().unwrap_or_default();
    assert!(sentence.contains("onceward.db") && sentence.contains("written"), "{ended:#?}");
}
