//! A planted password is never printed: not by any command, at any log level, in errors, panics or dead letters.

mod environment;
pub(crate) mod leaks;
mod servers;
mod traces;

use std::net::TcpListener;

use onceward_test_support::orders::order;
use onceward_test_support::process::Ended;
use onceward_test_support::scene::Scene;
use serde_json::json;

use crate::stage::{ONCEWARD, PATIENCE};
use leaks::leak;

const CANARY: &str = "hunter2canary";

/// Everything that may hold a secret in a configuration that runs, with `${SECRET}` from the environment.
const HTTP: &str = r#"scope = "billing"
[source.file]
path = "orders.ndjson"
[store.sqlite]
path = "onceward.db"
lease = "1s"
timeout = "800ms"
[key]
from = ["json:/id"]
[handler.http]
url = "http://user:${SECRET}@127.0.0.1:PORT/services/${SECRET}?token=${SECRET}"
headers = { Authorization = "Bearer ${SECRET}" }
timeout = "900ms"
[retry]
max_attempts = 2
initial = "10ms"
max = "20ms"
[dead_letter]
to = "dead.ndjson"
"#;

const EXEC: &str = r#"scope = "billing"
[source.file]
path = "orders.ndjson"
[store.sqlite]
path = "onceward.db"
lease = "1s"
timeout = "800ms"
[key]
from = ["json:/id"]
[handler.exec]
command = ["sh", "-c", "exit 75", "https://user:hunter2canary@127.0.0.1/?token=hunter2canary", "--password=hunter2canary"]
env = { TOKEN = "${SECRET}" }
[retry]
max_attempts = 2
initial = "10ms"
max = "20ms"
[dead_letter]
to = "dead.ndjson"
"#;

const SQL: &str = r#"scope = "billing"
guarantee = "effectively-once"
[source.file]
path = "orders.ndjson"
[store.sqlite]
path = "onceward.db"
lease = "1s"
timeout = "800ms"
[key]
from = ["json:/id"]
[handler.sql]
statement = "INSERT INTO effects (id, worked) VALUES ($1, nullif('${SECRET}', '${SECRET}'))"
timeout = "900ms"
[dead_letter]
to = "dead.ndjson"
"#;

const COMMANDS: [&[&str]; 11] = [
    &["check", "onceward.toml"],
    &["check", "--offline", "onceward.toml"],
    &["check", "--json", "onceward.toml"],
    &["config", "show", "onceward.toml"],
    &["migrate", "onceward.toml"],
    &["run", "onceward.toml", "--startup-timeout", "2s"],
    &["status", "onceward.toml"],
    &["status", "--json", "onceward.toml"],
    &["keys", "stats", "onceward.toml"],
    &["keys", "list", "onceward.toml"],
    &["keys", "explain", "onceward.toml", "one"],
];

/// Runs a command line with the secret in the environment, at the most talkative level there is.
fn execute(scene: &Scene, args: &[&str], plan: Option<&str>) -> Ended {
    let mut command = scene.command(args);
    command
        .env("SECRET", CANARY)
        .env("UNUSED", "value")
        .env("RUST_LOG", "trace")
        .env("ONCEWARD_LOG", "trace")
        .env("RUST_BACKTRACE", "full");
    if let Some(plan) = plan {
        command.env("ONCEWARD_FAILPOINTS", plan);
    }
    scene.start(&mut command).wait_within(PATIENCE)
}

fn assert_silent(scene: &Scene, args: &[&str], ended: &Ended) {
    let letters = std::fs::read_to_string(scene.path("dead.ndjson")).unwrap_or_default();
    for (place, text) in [("stdout", &ended.stdout), ("stderr", &ended.stderr), ("dead letters", &letters)] {
        assert_eq!(leak(text, CANARY), None, "{args:?} printed the password in its {place}");
    }
}

fn scene(config: &str) -> Scene {
    let scene = Scene::new(ONCEWARD);
    scene.write("onceward.toml", config.as_bytes());
    scene.write("orders.ndjson", format!("{}\n", order("one", &json!({}))).as_bytes());
    scene.database().execute("CREATE TABLE effects (id TEXT, worked TEXT NOT NULL)");
    scene
}

#[test]
fn no_command_prints_a_password_whatever_goes_wrong() {
    // Bound and never answering: connections are made, and time out.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("its address").port().to_string();
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
        gone.local_addr().expect("its address").port().to_string()
    };
    for config in [HTTP.replace("PORT", &port), HTTP.replace("PORT", &closed), EXEC.into(), SQL.into()] {
        let scene = scene(&config);
        for args in COMMANDS {
            let ended = execute(&scene, args, None);
            assert!(matches!(ended.code(), Some(0 | 1 | 3)), "{args:?}: {ended:#?}");
            assert_silent(&scene, args, &ended);
            if args[0] == "run" {
                // A finite run does not begin while nothing listens where its handler is.
                let (code, said) = if config.contains(&closed) {
                    (1, ["cannot be reached", "cannot be reached"])
                } else {
                    (3, ["TRACE", "DEBUG"])
                };
                assert_eq!(ended.code(), Some(code), "{ended:#?}");
                assert!(said.iter().any(|said| ended.stderr.contains(said)), "it told nothing: {ended:#?}");
            }
        }
    }
}

#[test]
fn a_panic_prints_no_password() {
    // It takes connections and answers nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("its address").port().to_string();
    for config in [HTTP.replace("PORT", &port), EXEC.into()] {
        for step in ["received", "handler-start", "effect-done", "fail-sent", "ack-sent"] {
            let scene = scene(&config);
            let args = ["run", "onceward.toml"];
            let mut command = scene.command(&args);
            command.env("SECRET", CANARY).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
            command.env("ONCEWARD_FAILPOINTS", format!("{step}:1:panic"));
            let mut running = scene.start(&mut command);
            // What a panic in the middle of the program leads to is another story.
            let told = std::time::Instant::now();
            while running.is_running()
                && !running.stderr().contains("crash point")
                && told.elapsed() < PATIENCE
            {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let ended = running.kill();
            assert!(ended.stderr.contains("crash point"), "{step}: {ended:#?}");
            assert_silent(&scene, &args, &ended);
        }
    }
}

/// A wrong value in each place that may contain a password, found at the start.
#[test]
fn a_password_in_a_wrong_place_is_not_quoted() {
    let places = [
        ("scope = \"billing\"", format!("scope = \"billing\"\npassword = \"{CANARY}\"")),
        ("timeout = \"900ms\"", format!("timeout = \"{CANARY}\"")),
        ("max_attempts = 2", format!("max_attempts = \"{CANARY}\"")),
        ("from = [\"json:/id\"]", format!("from = [\"{CANARY}\"]")),
        ("url = \"http://user", "url = \"ftp://user".to_owned()),
        ("headers = {", format!("headers = {{ \"{CANARY}\" = 1,")),
        ("[dead_letter]", format!("[dead_letter]\n{CANARY} = 1")),
        ("[dead_letter]", format!("[dead_letter\n'{CANARY}")),
    ];
    for (part, wrong) in places {
        let config = HTTP.replace("PORT", "1");
        assert!(config.contains(part), "{part}");
        let scene = scene(&config.replace(part, &wrong));
        for args in COMMANDS {
            let ended = execute(&scene, args, None);
            assert_eq!(ended.code(), Some(78), "{args:?} with {wrong}: {ended:#?}");
            // A key's own name is no secret, wherever it is.
            if !wrong.contains(&format!("{CANARY} = 1")) && !wrong.contains(&format!("\"{CANARY}\" = 1")) {
                assert_silent(&scene, args, &ended);
            }
        }
    }
}
