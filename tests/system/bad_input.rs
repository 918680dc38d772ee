//! Lines that are no messages, or hardly: each has a clear outcome, its neighbours are unaffected, and nothing is lost.

use std::collections::BTreeSet;

use onceward_test_support::effects::Kind;
use onceward_test_support::orders::order;
use onceward_test_support::scene::Scene;
use onceward_test_support::setup::Setup;
use serde_json::{Value, json};

use crate::stage::{each, exec, header, scene, worker};

const NEIGHBOURS: [&str; 4] = ["first", "second", "third", "last"];

/// Each bad line with a neighbour before it and after it.
fn between_neighbours(bad: Vec<Vec<u8>>, neighbour: impl Fn(&str) -> String) -> Vec<u8> {
    let mut content = Vec::new();
    let mut add = |line: &[u8]| {
        content.extend_from_slice(line);
        content.push(b'\n');
    };
    let mut neighbours = NEIGHBOURS.iter();
    for line in bad {
        if let Some(id) = neighbours.next() {
            add(neighbour(id).as_bytes());
        }
        add(&line);
    }
    neighbours.for_each(|id| add(neighbour(id).as_bytes()));
    content
}

fn with_content(setup: &Setup, content: &[u8]) -> Scene {
    let scene = scene(setup, &[]);
    scene.write("orders.ndjson", content);
    scene
}

fn plain(id: &str) -> String {
    order(id, &json!({}))
}

/// Runs to the end and once more: everything has its outcome, and the offset is kept at the end.
fn run_through(scene: &Scene, code: i32, received: u64) {
    let ended = scene.run_to_end();
    assert_eq!((ended.code(), ended.summary("received")), (Some(code), received), "{ended:#?}");
    assert_eq!(ended.summary("handled") + ended.summary("dead-lettered"), received, "{ended:#?}");
    let again = scene.run_to_end();
    assert_eq!((again.code(), again.summary("received")), (Some(0), 0), "{again:#?}");
}

fn assert_neighbours_handled(scene: &Scene) {
    let effects = scene.count(Kind::Effect);
    let of_neighbours = effects.into_iter().filter(|(id, _)| NEIGHBOURS.contains(&id.as_str()));
    assert_eq!(
        of_neighbours.collect::<std::collections::BTreeMap<_, _>>(),
        each(&NEIGHBOURS.map(String::from), 1)
    );
}

/// The reason and the error of each dead letter.
fn reasons(scene: &Scene) -> Vec<(String, String)> {
    let reason = |letter: &Value| {
        (header(letter, "onceward-reason").to_owned(), header(letter, "onceward-error").to_owned())
    };
    scene.letters().iter().map(reason).collect()
}

#[test]
fn a_line_without_a_usable_key_is_dead_lettered_with_its_bytes() {
    let too_long = json!({"id": "k".repeat(64 * 1024 + 1)}).to_string();
    let bad: Vec<Vec<u8>> = vec![
        br#"{"id":""}"#.to_vec(),
        br#"{"id": broken"#.to_vec(),
        b"\0\0\0".to_vec(),
        br#"{"other":1}"#.to_vec(),
        br#"{"id":{"an":"object"}}"#.to_vec(),
        br#"{"id":null}"#.to_vec(),
        b"\xff\xfe no text".to_vec(),
        too_long.clone().into_bytes(),
    ];
    let count = bad.len();
    let scene = with_content(&worker(), &between_neighbours(bad, plain));
    run_through(&scene, 3, (count + NEIGHBOURS.len()) as u64);
    assert_neighbours_handled(&scene);
    let reasons = reasons(&scene);
    assert_eq!(reasons.len(), count, "{reasons:?}");
    assert!(
        reasons.iter().all(|(reason, error)| reason == "missing-key" && !error.is_empty()),
        "{reasons:?}"
    );
    assert!(
        reasons.iter().any(|(_, error)| error.contains("65537") || error.contains("65,537")),
        "{reasons:?}"
    );
    // Nothing was cut or changed on the way.
    let letters = scene.letters();
    let payloads: BTreeSet<_> = letters.iter().map(|letter| letter["payload"].to_string()).collect();
    assert!(payloads.contains(&json!("\0\0\0").to_string()), "{payloads:?}");
    assert!(payloads.contains(&too_long));
    assert!(letters.iter().any(|letter| letter["payload_base64"] == "//4gbm8gdGV4dA=="));
}

#[test]
fn a_key_of_64_kib_is_a_key_like_any_other() {
    let line = plain(&"k".repeat(64 * 1024));
    let content = between_neighbours(vec![line.clone().into_bytes(), line.into_bytes()], plain);
    let scene = with_content(&worker(), &content);
    let ended = scene.run_to_end();
    let told = ["received", "handled", "duplicates"].map(|word| ended.summary(word));
    assert_eq!((ended.code(), told), (Some(0), [6, 5, 1]), "{ended:#?}");
    assert_neighbours_handled(&scene);
}

#[test]
fn keys_that_look_alike_stay_apart() {
    let ids = ["a", "A", "á", "a\u{301}", "a ", "\u{1f600}", "a\u{200b}", "а"];
    let lines: Vec<_> = ids.iter().map(|id| plain(id)).collect();
    let scene = scene(&worker(), &lines);
    run_through(&scene, 0, ids.len() as u64);
    assert_eq!(scene.count(Kind::Effect), each(&ids.map(String::from), 1));
}

#[test]
fn keys_that_other_readers_see_differently_are_dead_lettered() {
    let bad = [
        r#"{"id":"first","id":"other"}"#,
        r#"{"id":"other","\u0069d":"first"}"#,
        r#"{"id":"other","ID":"first"}"#,
        r#"{"id":"first\u0000"}"#,
        r#"{"id":7.0}"#,
        r#"{"id":["first"]}"#,
        "\u{feff}{\"id\":\"first\"}",
    ];
    // Not with the hash of the payload either, of which there are as many as payloads.
    for setup in [worker(), worker().set("policy.on_missing_key", "hash")] {
        let lines = bad.iter().map(|line| line.as_bytes().to_vec()).collect();
        let content = [between_neighbours(vec![], plain), between_neighbours(lines, plain)].concat();
        let scene = with_content(&setup, &content);
        let ended = scene.run_to_end();
        assert_eq!((ended.code(), ended.summary("handled")), (Some(3), 4), "{ended:#?}");
        assert_neighbours_handled(&scene);
        let reasons = reasons(&scene);
        assert_eq!(reasons.len(), bad.len(), "{reasons:?}");
        assert!(reasons.iter().all(|(reason, _)| reason == "missing-key"), "{reasons:?}");
        let named = reasons.iter().filter(|(_, error)| error.contains("json:/id is ambiguous")).count();
        assert_eq!(named, bad.len() - 1, "{reasons:?}");
    }
}

#[test]
fn a_line_of_32_mb_is_handled_whole() {
    let huge = order("huge", &json!({"padding": "x".repeat(32_000_000)}));
    for setup in [worker(), exec()] {
        let scene = with_content(&setup, &between_neighbours(vec![huge.clone().into_bytes()], plain));
        run_through(&scene, 0, 5);
        assert_neighbours_handled(&scene);
        assert_eq!(scene.count(Kind::Effect)["huge"], 1);
    }
}

#[test]
fn a_line_over_the_limit_is_dead_lettered_as_such() {
    let long = order("long", &json!({"padding": "x".repeat(100_000)}));
    let setup = worker().set("source.file.max_message_bytes", "64KiB");
    let scene = with_content(&setup, &between_neighbours(vec![long.into_bytes()], plain));
    run_through(&scene, 3, 5);
    assert_neighbours_handled(&scene);
    let reasons = reasons(&scene);
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0].0, "defect");
    assert!(reasons[0].1.contains("65536") || reasons[0].1.contains("64"), "{reasons:?}");
    assert!(!header(&scene.letters()[0], "onceward-position").is_empty(), "it says where the rest is");
}

fn envelope(id: &str) -> String {
    format!(r#"{{"payload":{}}}"#, plain(id))
}

#[test]
fn headers_of_any_kind_and_number_stop_nobody() {
    let many: serde_json::Map<String, Value> =
        (0..10_000).map(|number| (format!("h{number}"), json!("v"))).collect();
    let odd = [
        json!({"headers": {"bytes": {"base64": "//79"}}, "payload": {"id": "not-text"}}),
        json!({"headers": many, "payload": {"id": "many"}}),
        json!({"headers": {"": "nameless", "a\nb": "\u{1b}[31m", "long": "x".repeat(1_000_000)}, "payload": {"id": "odd"}}),
    ];
    for setup in [worker(), exec()] {
        let setup = setup.set("source.file.format", "envelope");
        let bad = odd.iter().map(|line| line.to_string().into_bytes()).collect();
        let scene = with_content(&setup, &between_neighbours(bad, envelope));
        run_through(&scene, 0, 7);
        assert_neighbours_handled(&scene);
        let effects = scene.count(Kind::Effect);
        assert_eq!(["not-text", "many", "odd"].map(|id| effects[id]), [1, 1, 1]);
    }
}

#[test]
fn what_is_no_envelope_is_dead_lettered_as_it_came() {
    let bad: Vec<Vec<u8>> = vec![
        b"no JSON".to_vec(),
        br#"{"id":"1"}"#.to_vec(),
        br#"{"payload":{"id":"x"},"unknown":1}"#.to_vec(),
        br#"{"payload_base64":"!"}"#.to_vec(),
        b"[".repeat(100_000),
    ];
    let count = bad.len();
    let setup = worker().set("source.file.format", "envelope");
    let scene = with_content(&setup, &between_neighbours(bad, envelope));
    run_through(&scene, 3, (count + NEIGHBOURS.len()) as u64);
    assert_neighbours_handled(&scene);
    let reasons = reasons(&scene);
    assert_eq!(reasons.len(), count);
    assert!(reasons.iter().all(|(reason, _)| reason == "defect"), "{reasons:?}");
}

#[test]
fn a_last_line_without_its_end_is_handled_and_comes_again_as_a_copy() {
    let content = format!("{}\n{}", plain("first"), plain("last"));
    let scene = with_content(&worker(), content.as_bytes());
    let ended = scene.run_to_end();
    assert_eq!((ended.code(), ended.summary("handled")), (Some(0), 2));
    scene.write("orders.ndjson", format!("{content}\n{}\n", plain("more")).as_bytes());
    let more = scene.run_to_end();
    assert_eq!((more.summary("handled"), more.summary("duplicates")), (1, 1), "{more:#?}");
    assert_eq!(scene.count(Kind::Effect), each(&["first", "last", "more"].map(String::from), 1));
}

#[test]
fn empty_lines_are_no_messages_and_line_ends_are_no_content() {
    let content = format!("\n\r\n{}\r\n\n{}\n\n", plain("first"), plain("second"));
    let scene = with_content(&worker(), content.as_bytes());
    run_through(&scene, 0, 2);
    assert_eq!(scene.count(Kind::Effect), each(&["first", "second"].map(String::from), 1));
}

#[test]
fn two_messages_that_share_a_key_are_told_apart() {
    let lines = [order("same", &json!({"n": 1})), order("same", &json!({"n": 2}))];
    let scene = scene(&worker(), &lines);
    run_through(&scene, 3, 2);
    assert_eq!(scene.count(Kind::Effect)["same"], 1);
    let letters = scene.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(header(&letters[0], "onceward-reason"), "mismatch");
}

#[test]
fn nothing_in_a_message_acts_on_a_terminal_or_forges_a_line_of_the_log() {
    let forged = "2026-01-01T00:00:00Z ERROR onceward: forged";
    let evil = format!("a\n{forged}\n\u{1b}[2Jb\u{9b}31m");
    let lines = [
        json!({"id": evil, "headers": {"evil": evil, evil.as_str(): "name"}, "payload": {"id": evil}})
            .to_string(),
        json!({"id": evil, "headers": {"evil": evil}, "payload": {"id": evil, "do": "permanent"}})
            .to_string(),
        json!({"id": evil, "payload": {"no": "key"}}).to_string(),
        format!("{{\"id\":\"{}", evil.replace('\n', " ")),
    ];
    let scene = scene(&exec().set("source.file.format", "envelope"), &lines);
    let mut command = scene.command(&["run", "onceward.toml"]);
    let ended = scene.start(command.env("ONCEWARD_LOG", "trace")).wait_within(crate::stage::PATIENCE);
    assert_eq!(ended.code(), Some(3), "{ended:#?}");
    assert!(!ended.stderr.contains(['\u{1b}', '\u{9b}']), "a control character reached the log");
    assert!(!ended.stderr.lines().any(|line| line.starts_with(forged)), "a line was forged");
}
