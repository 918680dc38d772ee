//! What is logged: levels in every spelling, filters that are none, and few lines of each kind however much fails.

use super::scene::{CHARGE, Ended, ORDERS, Scene};

/// Each message fails for good, but for those whose id ends in 9: a handler that never succeeds is taken to be unavailable.
fn failing(messages: usize) -> Scene {
    let scene = Scene::new(&format!(
        "{ORDERS}[store.memory]\n[handler.exec]\ncommand = ['sh', '-c', 'case $(cat) in *9*) ;; *) exit 65;; esac']\n"
    ));
    let orders: String = (0..messages).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    scene.write("orders.ndjson", &orders);
    scene
}

fn with(scene: &Scene, filter: &str) -> Ended {
    let mut command = scene.command("run @");
    command.env("ONCEWARD_LOG", filter);
    scene.start(command).end()
}

fn count(ended: &Ended, part: &str) -> usize {
    ended.stderr.lines().filter(|line| line.contains(part)).count()
}

#[test]
fn a_flood_of_failures_has_few_lines_of_each_kind_and_loses_no_letter() {
    let scene = failing(300);
    let ended = scene.tell("run @");
    assert_eq!((ended.code(), scene.lines("dead.ndjson").len()), (Some(3), 243), "{ended:?}");
    let lines = count(&ended, "a message was dead-lettered");
    assert!((1..=20).contains(&lines), "{lines} lines: {}", ended.stderr);
    assert!(ended.stderr.lines().count() < 100, "{}", ended.stderr);
}

#[test]
fn every_spelling_of_a_level_logs_at_that_level() {
    for (filter, has_warnings, has_infos) in [
        ("warning", true, false),
        ("WARN", true, false),
        ("err", false, false),
        ("onceward=info", true, true),
        ("onceward_kafka=debug", true, true),
        ("info", true, true),
        ("", true, true),
        ("off", false, false),
    ] {
        let ended = with(&failing(1), filter);
        assert_eq!(ended.code(), Some(3), "{filter}: {ended:?}");
        assert_eq!(count(&ended, " WARN ") > 0, has_warnings, "{filter}: {ended:?}");
        assert_eq!(count(&ended, " INFO ") > 0, has_infos, "{filter}: {ended:?}");
    }
}

#[test]
fn what_is_no_filter_ends_with_78_and_a_sentence_and_takes_no_message() {
    for filter in ["verbose", "warnings", "onceward=loud", "info debug", "a=b=c"] {
        let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{CHARGE}\n"));
        scene.write("orders.ndjson", "{\"id\":1}\n");
        let ended = with(&scene, filter);
        assert_eq!((ended.code(), scene.effects().len()), (Some(78), 0), "{filter}: {ended:?}");
        assert!(ended.stderr.contains("ONCEWARD_LOG: ") && ended.stderr.contains(filter), "{ended:?}");
    }
}
