//! `onceward dlq`: operators list, show, redrive, correct and purge dead letters, on each broker and in files.

mod kills;
mod purge;
mod view;

use onceward_test_support::orders;
use onceward_test_support::process::{Ended, until};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::pair::{LONG, Waiting, stop};

/// With dead letters in `to`, of handlers that have one attempt.
pub(crate) fn letters_to(setup: Setup, to: &str) -> Setup {
    let setup = setup.set("policy.on_exhausted", "dead-letter").set("dead_letter.to", to);
    // Handlers that fail in a row do not stop the others.
    setup.set("retry.max_attempts", 1).set("pipeline.breaker_keys", 0)
}

/// An order whose handler is fixed after it has died.
fn dies_once(id: &str) -> String {
    orders::order(id, &json!({"do": "fail", "times": 1}))
}

fn dlq(scene: &Scene, command: &str, more: &[&str]) -> Ended {
    scene.execute(&[&["dlq", command, "onceward.toml"], more].concat())
}

/// What a command printed that succeeded.
fn printed(ended: &Ended) -> &str {
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    ended.stdout.trim()
}

/// What a command printed as JSON lines.
fn lines(ended: &Ended) -> Vec<Value> {
    printed(ended).lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
}

fn list(scene: &Scene, more: &[&str]) -> Vec<Value> {
    lines(&dlq(scene, "list", &[&["--json"], more].concat()))
}

/// The texts of one field.
fn texts(lines: &[Value], field: &str) -> Vec<String> {
    lines.iter().map(|line| line[field].as_str().unwrap_or_default().to_owned()).collect()
}

/// Runs until nothing waits in the source.
fn run(scene: &Scene, source: &impl Waiting) {
    let running = scene.run();
    until("an empty source", LONG, || source.is_empty());
    stop(vec![running]);
}
