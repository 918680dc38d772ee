//! Tests of mistakes in a configuration: one sentence that names line, key and fix, and the exit code for it.

use onceward_test_support::scene::Scene;

use crate::stage::ONCEWARD;

const SOUND: &str = r#"scope = "billing"
[source.file]
path = "orders.ndjson"
[store.sqlite]
path = "onceward.db"
[key]
from = ["json:/id"]
[handler.exec]
command = ["true"]
[dead_letter]
to = "dead.ndjson"
"#;

/// A part of the configuration, its replacement, and the parts of the report: line, key, and words of the fix.
const MISTAKES: [(&str, &str, &str, &str, &str); 14] = [
    ("path = \"onceward.db\"", "pth = \"onceward.db\"", "5", "store.sqlite.pth", "path"),
    ("[dead_letter]\nto = \"dead.ndjson\"", "", "", "policy.on_missing_key", "[dead_letter]"),
    ("from = [\"json:/id\"]", "from = []", "7", "key.from", "at least one"),
    ("from = [\"json:/id\"]", "from = [\"json:id\"]", "7", "key.from", "/"),
    ("[key]\nfrom = [\"json:/id\"]", "", "", "key.from", "[key]"),
    ("command = [\"true\"]", "command = []", "9", "handler.exec.command", "at least one"),
    ("command = [\"true\"]", "command = \"true\"", "9", "handler.exec.command", ""),
    ("command = [\"true\"]", "command = [\"true\"]\ntimeout = \"5\"", "10", "handler.exec.timeout", "s"),
    ("scope = \"billing\"", "scope = \"\"", "1", "scope", "name"),
    (
        "scope = \"billing\"",
        "scope = \"billing\"\nguarantee = \"effectively-once\"",
        "2",
        "guarantee",
        "[handler.sql]",
    ),
    (
        "[store.sqlite]\npath = \"onceward.db\"",
        "[store.sqlite]\npath = \"onceward.db\"\nlease = \"1ms\"",
        "6",
        "store.sqlite.lease",
        "",
    ),
    ("[key]", "[pipeline]\nconcurrency = 0\n[key]", "7", "pipeline.concurrency", "1"),
    (
        "command = [\"true\"]",
        "command = [\"${ONCEWARD_TEST_ABSENT}\"]",
        "9",
        "handler.exec.command",
        "ONCEWARD_TEST_ABSENT",
    ),
    ("command = [\"true\"]", "command = [\"true\"", "", "", ""),
];

#[test]
fn a_mistake_is_one_sentence_with_line_key_and_fix_from_every_command() {
    for (part, mistake, line, key, fix) in MISTAKES {
        assert!(SOUND.contains(part), "{part}");
        let scene = Scene::new(ONCEWARD);
        scene.write("onceward.toml", SOUND.replace(part, mistake).as_bytes());
        scene.write("orders.ndjson", b"");
        for args in [
            &["run", "onceward.toml"] as &[&str],
            &["check", "onceward.toml"],
            &["config", "show", "onceward.toml"],
            &["migrate", "onceward.toml"],
            &["status", "onceward.toml"],
            &["keys", "stats", "onceward.toml"],
        ] {
            let ended = scene.execute(args);
            assert_eq!(ended.code(), Some(78), "{args:?} with {mistake:?}: {ended:#?}");
            assert_eq!(ended.stdout, "", "{args:?} with {mistake:?}");
            assert_eq!(ended.stderr.lines().count(), 1, "{args:?} with {mistake:?}: {ended:#?}");
            let place = if line.is_empty() {
                "onceward.toml:".into()
            } else {
                format!("onceward.toml:{line}: {key}")
            };
            let told = &ended.stderr;
            assert!(
                told.starts_with(&place) && told.contains(key) && told.contains(fix),
                "{mistake:?}: {told}"
            );
        }
        assert!(!scene.path("onceward.db").exists(), "a wrong configuration made a database");
    }
}

#[test]
fn what_the_configuration_names_and_is_not_there_is_told_before_anything_starts() {
    for (part, other, words) in [
        ("path = \"orders.ndjson\"", "path = \"absent.ndjson\"", "absent.ndjson"),
        ("command = [\"true\"]", "command = [\"no-such-program\"]", "no-such-program"),
        ("path = \"onceward.db\"", "path = \"no/such/folder/onceward.db\"", "onceward.db"),
    ] {
        let scene = Scene::new(ONCEWARD);
        scene.write("onceward.toml", SOUND.replace(part, other).as_bytes());
        scene.write("orders.ndjson", b"{\"id\":\"1\"}\n");
        for command in ["run", "check"] {
            let ended = scene.execute(&[command, "onceward.toml"]);
            assert!(matches!(ended.code(), Some(1 | 78)), "{command} with {other}: {ended:#?}");
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(said.contains(words), "{command} with {other}: {ended:#?}");
            assert!(!said.contains("panicked"), "{ended:#?}");
        }
        assert!(!scene.path("dead.ndjson").exists(), "a message paid for a mistake in the configuration");
    }
}

#[test]
fn a_database_that_is_there_without_our_schema_is_no_error_of_a_check_which_leaves_it_alone() {
    let scene = Scene::new(ONCEWARD);
    scene.write("onceward.toml", SOUND.as_bytes());
    scene.write("orders.ndjson", b"{\"id\":\"1\"}\n");
    // Nothing at all is a database to SQLite.
    scene.write("onceward.db", b"");
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(checked.stdout.contains("the next run takes them"), "{checked:#?}");
    assert_eq!(std::fs::metadata(scene.path("onceward.db")).expect("the file").len(), 0);
    assert_eq!(scene.execute(&["run", "onceward.toml"]).code(), Some(0));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert!(checked.stdout.contains("answers") && !checked.stdout.contains("the next run"), "{checked:#?}");
}
