//! Handlers that fail: once, always, for good, or together with the whole process.

use onceward_test_support::effects::{Kind, Note};
use onceward_test_support::orders::{Orders, order};
use onceward_test_support::scene::joined;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, each, exec, header, ledger, letter_id, scene, worker};

/// A message with id and headers, as an envelope.
fn envelope(id: &str, fields: &Value) -> String {
    let payload: Value = serde_json::from_str(&order(id, fields)).expect("an order is JSON");
    json!({"id": format!("m-{id}"), "headers": {"tenant": "acme", "tag": ["a", "b"]}, "payload": payload})
        .to_string()
}

fn neighbours() -> Vec<String> {
    (0..10).map(|number| format!("neighbour-{number}")).collect()
}

/// The neighbours' lines with `line` in their middle.
fn among_neighbours(line: String, as_line: impl Fn(&str) -> String) -> Vec<String> {
    let mut lines: Vec<_> = neighbours().iter().map(|id| as_line(id)).collect();
    lines.insert(5, line);
    lines
}

#[test]
fn a_handler_that_always_fails_runs_as_often_as_it_may_and_then_its_message_is_a_dead_letter() {
    for setup in [worker(), exec()] {
        let setup = setup.set("source.file.format", "envelope");
        let lines = among_neighbours(envelope("bad", &json!({"do": "fail"})), |id| envelope(id, &json!({})));
        let scene = scene(&setup, &lines);
        let ended = scene.run_to_end();
        assert_eq!(ended.code(), Some(3), "{ended:#?}");
        assert_eq!(["handled", "retried", "dead-lettered"].map(|word| ended.summary(word)), [10, 2, 1]);

        let runs: Vec<Note> =
            scene.notes().into_iter().filter(|note| note.id == "bad" && note.kind == Kind::Start).collect();
        assert_eq!(runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(runs.windows(2).all(|two| two[0].fence < two[1].fence), "the fence grows: {runs:?}");
        assert_eq!(scene.count(Kind::Effect), each(&neighbours(), 1));

        let letters = scene.letters();
        let [letter] = &letters[..] else { panic!("one dead letter: {letters:#?}") };
        assert_eq!(letter["payload"], json!({"id": "bad", "do": "fail"}), "the payload as it came");
        assert_eq!((header(letter, "tenant"), &letter["headers"]["tag"]), ("acme", &json!(["a", "b"])));
        assert_eq!(header(letter, "onceward-reason"), "attempts-exhausted");
        assert!(header(letter, "onceward-error").contains("told to fail"), "{letter:#}");
        assert_eq!(header(letter, "onceward-attempts"), "3");
        assert_eq!(header(letter, "onceward-key"), runs[0].key);
        assert_eq!(header(letter, "onceward-scope"), "billing");
        assert_eq!(header(letter, "onceward-message-id"), "m-bad");
        assert_eq!(header(letter, "onceward-origin"), "orders.ndjson");

        let again = scene.run_to_end();
        assert_eq!((again.code(), again.summary("received")), (Some(0), 0), "{again:#?}");
        assert_eq!(scene.letters().len(), 1);

        // Copies of dead messages run no more, and leave no second letter.
        scene.write("copy.ndjson", &joined(&lines));
        scene.configure(&setup.set("source.file.path", "copy.ndjson"));
        let copied = scene.run_to_end();
        assert_eq!((copied.code(), copied.summary("received"), copied.summary("handled")), (Some(0), 11, 0));
        assert_eq!((scene.count(Kind::Start)["bad"], scene.letters().len()), (3, 1), "{copied:#?}");
    }
}

#[test]
fn a_failure_for_good_is_not_tried_again() {
    for setup in [worker(), exec()] {
        let bad = order("bad", &json!({"do": "permanent"}));
        let scene = scene(&setup, &among_neighbours(bad, |id| order(id, &json!({}))));
        let ended = scene.run_to_end();
        assert_eq!((ended.code(), ended.summary("retried")), (Some(3), 0), "{ended:#?}");
        assert_eq!(scene.count(Kind::Start)["bad"], 1);
        let letters = scene.letters();
        assert_eq!(letters.len(), 1);
        assert_eq!(header(&letters[0], "onceward-reason"), "permanent");
        assert_eq!(header(&letters[0], "onceward-attempts"), "1");
        assert_eq!(scene.count(Kind::Effect), each(&neighbours(), 1));
    }
}

#[test]
fn a_handler_that_fails_once_is_tried_again_and_never_swallowed_as_a_duplicate() {
    for setup in [worker(), exec()] {
        let orders = Orders::of([
            ("fails", json!({"do": "fail", "times": 1})),
            ("dies", json!({"do": "exit", "times": 1})),
            ("well", json!({})),
        ]);
        // Copies right behind, which must not take the failed first run for a success.
        let lines: Vec<_> = orders.lines.iter().flat_map(|line| [line.clone(), line.clone()]).collect();
        let scene = scene(&setup, &lines);
        let ended = scene.run_to_end();
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
        let told = ["received", "handled", "duplicates", "retried"].map(|word| ended.summary(word));
        assert_eq!(told, [6, 3, 3, 2]);
        assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
        let runs = scene.count(Kind::Start);
        assert_eq!((runs["fails"], runs["dies"], runs["well"]), (2, 2, 1));
    }
}

#[test]
fn a_message_that_kills_the_process_each_time_is_dead_lettered_and_its_neighbours_are_blameless() {
    for setup in [worker(), exec()] {
        kills_the_process_each_time(&setup);
    }
}

fn kills_the_process_each_time(setup: &Setup) {
    let mut ids = neighbours();
    let killer = order("killer", &json!({"do": "kill"}));
    let scene = scene(setup, &among_neighbours(killer, |id| order(id, &json!({"ms": 30}))));
    let mut deaths = 0;
    let ended = loop {
        let ended = scene.run().wait_within(PATIENCE);
        if ended.signal().is_none() {
            break ended;
        }
        assert_eq!(ended.signal(), Some(9), "{ended:#?}");
        deaths += 1;
        // `max_attempts` counted runs, and the first, which made it a suspect.
        assert!(deaths <= 4, "it goes on killing");
    };
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    let letters = scene.letters();
    assert_eq!(letters.iter().map(letter_id).collect::<Vec<_>>(), ["killer"]);
    assert_eq!(header(&letters[0], "onceward-reason"), "process-lost");
    assert_eq!(header(&letters[0], "onceward-attempts"), "3");
    assert!(!letters[0]["headers"]["onceward-error"].is_null());

    let runs = scene.count(Kind::Start)["killer"];
    assert!((3..=4).contains(&runs) && runs == deaths, "{runs} runs, {deaths} deaths");
    ids.push("killer".into());
    let bystanders = neighbours().into_iter().collect();
    ledger(&scene, &ids).verify(&bystanders);
    assert!(scene.count(Kind::Effect).values().all(|effects| *effects <= 1 + deaths));
    let blamed =
        scene.database().number("SELECT count(*) FROM onceward_keys WHERE state = 4 AND attempts > 0");
    assert_eq!(blamed, 0, "a neighbour was blamed");
    assert_eq!(scene.database().number("SELECT count(*) FROM onceward_keys WHERE state = 4"), 10);
}
