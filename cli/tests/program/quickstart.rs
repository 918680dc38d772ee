//! The first run that the README shows, on a copy of its folder.
#![cfg(feature = "sqlite")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use super::scene::Scene;

/// The files of the example, and an empty folder for its state.
fn copy() -> Scene {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart");
    let scene = Scene::new("");
    for name in ["onceward.toml", "orders.ndjson", "charge.sh"] {
        fs::copy(example.join(name), scene.path(name)).unwrap();
    }
    fs::create_dir(scene.path("state")).unwrap();
    scene
}

#[test]
fn a_thousand_deliveries_of_seven_hundred_orders_have_seven_hundred_effects_and_then_none() {
    let scene = copy();
    let began = Instant::now();
    let first = scene.execute("run @");
    let figures = "received=1000 handled=700 duplicates=300 retried=0 dead-lettered=0\n";
    assert_eq!((first.code(), first.stdout.as_str()), (Some(0), figures), "{first:?}");
    assert!(began.elapsed().as_secs() < 20, "nobody waits so long for a first run: {:?}", began.elapsed());
    let effects = scene.lines("state/effects.log");
    let orders: BTreeSet<_> = scene.lines("orders.ndjson").into_iter().collect();
    let charged: BTreeSet<_> =
        effects.iter().filter_map(|line| line.split_once(' ')).map(|(_, order)| order.to_owned()).collect();
    assert_eq!((effects.len(), charged), (700, orders));

    let second = scene.execute("run @");
    assert_eq!((second.code(), scene.lines("state/effects.log").len()), (Some(0), 700), "{second:?}");
}

#[test]
fn the_first_run_passes_the_check() {
    let ended = copy().execute("check @");
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(!ended.stdout.contains("error: "), "{ended:?}");
}
