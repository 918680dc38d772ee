//! Shared parts of several stories: the programs, their usual setups, and the ledger of a scene.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use onceward_test_support::effects::Kind;
use onceward_test_support::ledger::{Effect, Ledger, Produced};
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::Value;

/// The program under test.
pub(crate) const ONCEWARD: &str = env!("CARGO_BIN_EXE_onceward-under-test");

/// The handler.
pub(crate) const EFFECT_WORKER: &str = env!("CARGO_BIN_EXE_effect-worker");

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A scene whose handlers are four worker processes.
pub(crate) fn worker() -> Setup {
    Setup::worker(EFFECT_WORKER)
}

/// A scene whose handler is a process for each message.
pub(crate) fn exec() -> Setup {
    Setup::exec(EFFECT_WORKER)
}

/// A folder with configuration and input.
pub(crate) fn scene(setup: &Setup, lines: &[String]) -> Scene {
    Scene::with(ONCEWARD, setup, lines)
}

/// The ledger of a scene; ids are its keys.
pub(crate) fn ledger(scene: &Scene, ids: &[String]) -> Ledger {
    let produced = ids.iter().map(|id| Produced { key: id.clone(), order_key: None, confirmed: true });
    ledger_of(scene, produced.collect())
}

/// As [`ledger`], where it matters what else was produced with an id.
pub(crate) fn ledger_of(scene: &Scene, produced: Vec<Produced>) -> Ledger {
    let effects = scene.notes().into_iter().filter(|note| note.kind == Kind::Effect);
    Ledger {
        produced,
        effects: effects
            .map(|note| Effect { key: note.id, start: note.start_us, end: note.end_us })
            .collect(),
        dead: scene.letters().iter().map(letter_id).collect(),
    }
}

/// The `id` in the payload of a dead letter.
pub(crate) fn letter_id(letter: &Value) -> String {
    letter["payload"]["id"].as_str().unwrap_or_default().to_owned()
}

/// A header of a dead letter.
pub(crate) fn header<'a>(letter: &'a Value, name: &str) -> &'a str {
    letter["headers"][name].as_str().unwrap_or_else(|| panic!("no header {name} in {letter:#}"))
}

/// The keys whose claim is pending: if their process dies now, it is unknown whether they had their effect.
pub(crate) fn in_flight(scene: &Scene) -> BTreeSet<String> {
    scene.database().texts("SELECT lower(hex(key)) FROM onceward_keys WHERE state = 1").into_iter().collect()
}

/// The ids of keys, from the notes of handlers. Read at the end: a process that was started just before a kill writes
/// its first note just after it.
pub(crate) fn ids_of(scene: &Scene, keys: &BTreeSet<String>) -> BTreeSet<String> {
    let notes = scene.notes().into_iter();
    notes.filter(|note| keys.contains(&note.key)).map(|note| note.id).collect()
}

/// So many of each id, in order.
pub(crate) fn each(ids: &[String], count: usize) -> BTreeMap<String, usize> {
    ids.iter().map(|id| (id.clone(), count)).collect()
}
