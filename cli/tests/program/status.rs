//! `onceward status`, before, during and after a run.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::scene::{ORDERS, Scene, wait};

fn status(scene: &Scene) -> Value {
    // Into files of its own: the program that is being looked at has those of the scene.
    let output = scene.command("status --json @").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn status_tells_what_waits_what_runs_and_what_is_done() {
    let handler =
        r#"command = ["sh", "-c", "grep -q bad && exit 65; while test -e hold; do sleep 0.02; done"]"#;
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{ORDERS}follow = true\n{store}[handler.exec]\n{handler}\n"));
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n{\"id\":\"bad\"}\n");
    scene.write("hold", "");
    assert_eq!(scene.execute("migrate @").code(), Some(0));
    let before = status(&scene);
    assert_eq!(before["backlog"], json!({"bytes": 31, "messages": 3}));
    assert_eq!((&before["in_flight"], &before["dead_letters"]), (&json!(0), &json!(0)));

    let running = scene.start(scene.command("run @"));
    wait("a dead letter", || scene.lines("dead.ndjson").len() == 1);
    wait("it is dead in the store", || status(&scene)["keys"]["dead"] == 1);
    let during = status(&scene);
    assert_eq!((&during["in_flight"], &during["dead_letters"]), (&json!(2), &json!(1)), "{during}");
    assert_eq!(during["backlog"]["messages"], 3, "nothing before the first unsettled line is settled");

    std::fs::remove_file(scene.path("hold")).unwrap();
    wait("the rest", || status(&scene)["keys"]["completed"] == 2);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
    let after = status(&scene);
    assert_eq!(after["backlog"], json!({"bytes": 0, "messages": 0}));
    assert_eq!(after["keys"]["total"], 3);
    let text = scene.execute("status @").stdout;
    for line in
        ["scope        billing", "in flight    0", "dead letters 1 in ", "keys         completed 2, dead 1"]
    {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line}: {text}");
    }
}

/// A letter, as often as `count` says, of a scope whose store has an audit trail.
fn with_letters(count: usize) -> Scene {
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{ORDERS}{store}[handler.exec]\ncommand = ['sh', '-c', 'exit 65']\n"));
    scene.write("orders.ndjson", "{\"id\":1}\n");
    assert_eq!(scene.execute("run @").code(), Some(3));
    let letter = scene.lines("dead.ndjson").concat();
    scene.write("dead.ndjson", &format!("{letter}\n").repeat(count));
    scene
}

#[test]
fn very_many_letters_are_counted_up_to_a_limit() {
    let line = with_letters(12_000).execute("status @").stdout;
    assert!(line.contains("dead letters at least 10"), "{line}");
}

#[tokio::test]
async fn letters_that_cannot_be_read_are_shown_as_all_of_the_destination() {
    use sqlx::{Connection, Executor, SqliteConnection};
    let scene = with_letters(3);
    assert_eq!(scene.execute("status @").stdout.matches("dead letters 3 in ").count(), 1);
    let url = format!("sqlite:{}", scene.path("onceward.db").display());
    let mut conn = SqliteConnection::connect(&url).await.unwrap();
    conn.execute("alter table onceward_audit rename to onceward_audit_away").await.unwrap();
    let text = scene.execute("status @").stdout;
    let line = text.lines().find(|line| line.starts_with("dead letters 3 in ")).expect("the line");
    assert!(line.ends_with("redriven and purged ones included"), "{text}");
}
