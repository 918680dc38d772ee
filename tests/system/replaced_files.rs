//! Files that are no longer the same at the next run: nothing is skipped, and nothing is done twice.

use std::fs;

use onceward_test_support::effects::Kind;
use onceward_test_support::process::until;
use onceward_test_support::scene::joined;
use serde_json::json;

use crate::stage::{PATIENCE, each, scene, worker};

fn lines(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| onceward_test_support::orders::order(id, &json!({}))).collect()
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn another_file_of_the_same_name_is_read_from_its_beginning() {
    for replacement in [&["c", "d"] as &[&str], &["c", "d", "e", "f", "g"], &["a", "c", "b"]] {
        let scene = scene(&worker(), &lines(&["a", "b", "x"]));
        assert_eq!(scene.run_to_end().summary("handled"), 3);
        scene.write("new", &joined(&lines(replacement)));
        fs::rename(scene.path("new"), scene.path("orders.ndjson")).expect("a file can be renamed");

        let ended = scene.run_to_end();
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
        assert_eq!(ended.summary("received"), replacement.len() as u64, "{ended:#?}");
        let mut ids = owned(&["a", "b", "x"]);
        ids.extend(owned(replacement));
        assert_eq!(scene.count(Kind::Effect), each(&ids, 1));
        assert!(ended.stderr.contains("file was replaced or rewritten"), "{}", ended.stderr);
    }
}

#[test]
fn positions_in_another_file_of_the_same_name_are_other_keys() {
    let setup = worker().set("key.from", vec!["position"]);
    let scene = scene(&setup, &lines(&["a", "b"]));
    assert_eq!(scene.run_to_end().summary("handled"), 2);
    scene.write("new", &joined(&lines(&["c", "d"])));
    fs::rename(scene.path("new"), scene.path("orders.ndjson")).expect("a file can be renamed");
    let ended = scene.run_to_end();
    assert_eq!((ended.summary("handled"), ended.summary("duplicates")), (2, 0), "{ended:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&owned(&["a", "b", "c", "d"]), 1));
}

#[test]
fn a_file_that_grows_goes_on_where_it_was_left() {
    let scene = scene(&worker(), &lines(&["a", "b"]));
    scene.run_to_end();
    scene.write("orders.ndjson", &joined(&lines(&["a", "b", "c"])));
    let ended = scene.run_to_end();
    assert_eq!((ended.summary("received"), ended.summary("handled")), (1, 1), "{ended:#?}");
}

#[test]
fn a_file_replaced_after_a_kill_is_read_from_its_beginning() {
    let slow = |ids: &[&str]| -> Vec<String> {
        ids.iter().map(|id| onceward_test_support::orders::order(id, &json!({"ms": 100}))).collect()
    };
    let setup = worker().set("pipeline.concurrency", 1);
    let scene = scene(&setup, &slow(&["a", "b", "c", "d"]));
    let running = scene.run();
    until("some effects", PATIENCE, || scene.count(Kind::Effect).len() == 2);
    running.kill();
    scene.write("new", &joined(&slow(&["e", "f", "a"])));
    fs::rename(scene.path("new"), scene.path("orders.ndjson")).expect("a file can be renamed");
    let ended = scene.run_to_end();
    assert_eq!((ended.code(), ended.summary("received")), (Some(0), 3), "{ended:#?}");
    let effects = scene.count(Kind::Effect);
    assert_eq!(["a", "e", "f"].map(|id| effects[id]), [1, 1, 1]);
}

#[test]
fn a_line_that_changed_in_the_middle_of_another_file_is_not_skipped() {
    let ids: Vec<_> = (0..300).map(|number| format!("order-{number:03}")).collect();
    let mut other = ids.clone();
    other[250] = "other-250".to_owned();
    let as_lines = |ids: &[String]| lines(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let scene = scene(&worker(), &as_lines(&ids));
    scene.run_to_end();
    // The same length, the same beginning, the same last line.
    scene.write("new", &joined(&as_lines(&other)));
    fs::rename(scene.path("new"), scene.path("orders.ndjson")).expect("a file can be renamed");
    let ended = scene.run_to_end();
    assert_eq!(
        (ended.code(), ended.summary("received"), ended.summary("handled")),
        (Some(0), 300, 1),
        "{ended:#?}"
    );
    assert_eq!(scene.count(Kind::Effect)["other-250"], 1);
}
