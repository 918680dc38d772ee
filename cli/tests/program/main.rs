//! The program as scripts meet it: what it prints, and the code it ends with.
#![allow(clippy::unwrap_used)]

mod check;
mod handler_outages;
#[cfg(feature = "http")]
mod http_batch;
#[cfg(feature = "sqlite")]
mod keys;
#[cfg(all(feature = "telemetry", feature = "sqlite"))]
mod letter_actions;
#[cfg(all(feature = "otlp", feature = "redis", feature = "postgres"))]
mod links;
mod log;
mod observe;
#[cfg(feature = "sqlite")]
mod outage;
#[cfg(feature = "otlp")]
mod push;
mod quickstart;
#[cfg(feature = "redis")]
mod redis;
mod run;
mod scene;
mod signals;
#[cfg(feature = "sqlite")]
mod status;
#[cfg(feature = "telemetry")]
mod telemetry;
#[cfg(feature = "telemetry")]
mod top;
#[cfg(feature = "otlp")]
mod traces;
mod worker_many;
mod worker_python;

use std::path::Path;
use std::process::{Command, Output, Stdio};

const PASSWORD: &str = "hunter2canary";

fn onceward(args: &[&str]) -> Output {
    command(args).output().unwrap_or_else(|error| panic!("onceward {args:?} cannot be started: {error}"))
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.args(args).stdin(Stdio::null()).env("ONCEWARD_TEST_PASSWORD", PASSWORD);
    command
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}

const CONFIG: &str = r#"
scope = "billing"
[source.file]
path = "-"
[store.memory]
[key]
from = ["json:/id"]
[handler.exec]
command = ["curl", "https://me:${ONCEWARD_TEST_PASSWORD}@127.0.0.1/"]
[dead_letter]
to = "dead.ndjson"
"#;

#[test]
fn a_starter_is_written_once_and_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onceward.toml");

    let first = onceward(&["init", path(&file)]);
    assert_eq!((code(&first), stderr(&first)), (Some(0), String::new()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "passwords may come into it");
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap().replace("\"billing\"", "\"mine\""))
        .unwrap();

    let second = onceward(&["init", path(&file)]);
    assert_eq!(code(&second), Some(1));
    assert!(stderr(&second).ends_with("choose another name, or move the file away\n"), "{}", stderr(&second));
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"mine\""), "the file was overwritten");

    let printed = onceward(&["init"]);
    assert!(stdout(&printed).contains("scope = \"billing\""));
}

#[test]
#[cfg(feature = "http")]
fn the_starter_passes_the_check_of_a_default_build() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onceward.toml");
    std::fs::write(&file, stdout(&onceward(&["init"]))).unwrap();
    let checked = onceward(&["check", "--offline", path(&file)]);
    let ok = format!(
        "ok: {}: the configuration of scope \"billing\" is valid; no connection was made\n",
        file.display()
    );
    assert_eq!((code(&checked), stdout(&checked)), (Some(0), ok));
}

#[test]
fn a_wrong_configuration_ends_with_78_and_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onceward.toml");
    std::fs::write(&file, CONFIG.replace("[key]", &format!("[key]\nform = '{PASSWORD}'"))).unwrap();
    let sentence = "key.form: is not a known name; did you mean from?";
    for args in [["check", "--offline"], ["config", "show"]] {
        let output = onceward(&[args[0], args[1], path(&file)]);
        assert_eq!(code(&output), Some(78), "{args:?}");
        assert_eq!(stderr(&output), format!("{}:7: {sentence}\n", file.display()), "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
    }
    let output = onceward(&["check", "--offline", "--json", path(&file)]);
    assert_eq!((code(&output), stderr(&output)), (Some(78), String::new()));
    let finding: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        finding,
        serde_json::json!({
            "severity": "error", "code": "invalid-configuration",
            "documentation":
                concat!(
                    "https://github.com/onceward/onceward/blob/v", env!("CARGO_PKG_VERSION"),
                    "/docs/reference/findings.md#invalid-configuration"
                ),
            "line": 7, "key": "key.form", "message": "is not a known name", "fix": "did you mean from?",
        })
    );

    let absent = onceward(&["check", "--offline", "absent.toml"]);
    assert_eq!(code(&absent), Some(78));
    assert!(stderr(&absent).starts_with("absent.toml: cannot be read"), "{}", stderr(&absent));
}

#[test]
fn the_check_advises_one_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onceward.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let output = onceward(&["check", "--offline", path(&file)]);
    let (lines, name) = (stdout(&output), file.display());
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(code(&output), Some(0));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with(&format!("warning: {name}:5: store.memory: ")), "{lines:?}");
    assert!(lines[1].starts_with(&format!("ok: {name}: ")), "{lines:?}");
}

#[test]
fn the_effective_configuration_shows_no_secret_and_reads_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onceward.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let shown = stdout(&onceward(&["config", "show", path(&file)]));
    assert!(!shown.contains(PASSWORD), "{shown}");
    assert!(shown.contains("https://***:***@127.0.0.1/") && shown.contains("max_attempts = 10"), "{shown}");

    let again = folder.path().join("again.toml");
    std::fs::write(&again, &shown).unwrap();
    let shown_again = stdout(&onceward(&["config", "show", path(&again)]));
    let body = |text: &str| text.split_once('\n').map(|(_, body)| body.to_owned());
    assert_eq!(body(&shown_again), body(&shown));
}

#[test]
fn a_wrong_command_line_ends_with_2_and_help_with_0() {
    for (args, expected) in [
        (&["run"] as &[&str], 2),
        (&["nonsense"], 2),
        (&["check", "a", "b"], 2),
        (&[], 2),
        (&["--help"], 0),
        (&["keys", "forget", "--help"], 0),
        (&["--version"], 0),
    ] {
        assert_eq!(code(&onceward(args)), Some(expected), "{args:?}");
    }
}

#[test]
fn the_schema_is_json_and_completions_name_the_commands() {
    let schema: serde_json::Value = serde_json::from_slice(&onceward(&["schema"]).stdout).unwrap();
    assert!(schema["properties"]["scope"]["description"].is_string());
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&onceward(&["completions", shell]));
        assert!(script.contains("until-empty") && script.contains("explain"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for args in [&["schema"] as &[&str], &["init"], &["completions", "bash"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (Some(0), String::new()), "{args:?}");
    }
}
