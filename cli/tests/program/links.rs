//! Spans of duplicates link to the run that completed their key, and `keys explain` prints that run and what operators did.

use onceward_test_servers::otlp::{Collector, Span};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::{Connection, Executor, SqliteConnection};

use super::scene::{Ended, Scene, wait};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const LATER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const LATEST: &str = "a3ce929d0e0e47364bf92f3577b34da6";

/// A message of one key in a trace.
fn message(trace: &str) -> String {
    format!(
        "{{\"payload\":\"{{\\\"id\\\":1}}\",\"headers\":{{\"traceparent\":\"00-{trace}-b7ad6b7169203331-01\"}}}}\n"
    )
}

const EXEC: &str = "[handler.exec]\ncommand = ['true']\n";
const SQL: &str =
    "[handler.sql]\nstatement = 'WITH given AS (SELECT $1 AS payload) SELECT payload FROM given'\n";

fn scene(store: &str, handler: &str, telemetry: &str) -> Scene {
    let source = "[source.file]\npath = 'orders.ndjson'\nformat = 'envelope'\n";
    Scene::new(&format!("{source}[store.{store}\n{handler}[telemetry]\n{telemetry}\n"))
}

/// Runs the program over a new file with these messages, and gives the spans of their deliveries in the order of their ends.
fn run(scene: &Scene, collector: &Collector, messages: &str) -> Vec<Span> {
    let before = collector.spans().len();
    let _ = std::fs::remove_file(scene.path("orders.ndjson"));
    scene.write("orders.ndjson", messages);
    let ended = scene.execute("run @");
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let spans = collector.spans().split_off(before);
    spans.into_iter().filter(|span| span.name.starts_with("process ")).collect()
}

fn outcome(span: &Span) -> String {
    span.attribute("onceward.outcome").unwrap_or_default()
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
}

/// Stores with a handler each: the completion is written after the run, and in its transaction.
fn stores() -> Vec<(String, &'static str)> {
    let postgres = Postgres::shared();
    let in_postgres = |schema: &str| {
        postgres.sql(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE"));
        let url = postgres.url("postgres");
        format!("postgres]\nurl = '{url}'\nschema = '{schema}'")
    };
    let in_file = || "sqlite]\npath = 'onceward.db'".to_owned();
    vec![
        (in_file(), EXEC),
        (in_file(), SQL),
        (format!("redis]\nurl = '{}'", Redis::shared().url()), EXEC),
        (in_postgres("links_after"), EXEC),
        (in_postgres("links_within"), SQL),
    ]
}

#[test]
fn a_duplicate_links_to_the_run_that_completed_its_key_and_explain_prints_it() {
    for (store, handler) in stores() {
        let collector = Collector::start();
        let telemetry = format!("otlp = '{}'\nkeep_trace_context = true", collector.url());
        let scene = scene(&store, handler, &telemetry);
        let scope = format!("scope = 'links-{}'", std::process::id());
        let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
        scene.write("onceward.toml", &config.replace("scope = 'billing'", &scope));

        // The second comes while the first runs, so that the store is not asked for it.
        let first = run(&scene, &collector, &message(TRACE).repeat(2));
        let handled = first.iter().find(|span| outcome(span) == "handled").unwrap();
        let copy = first.iter().find(|span| outcome(span) == "duplicates").unwrap();
        assert_eq!((first.len(), &handled.links[..]), (2, &[][..]), "{store} {handler}");
        let link = (TRACE.to_owned(), handled.id.clone());
        assert!(copy.links.iter().eq([&link]), "{store} {handler}: {copy:?}");

        let [duplicate] = &run(&scene, &collector, &message(LATER))[..] else {
            panic!("{store} {handler}: one span")
        };
        assert_eq!(
            (duplicate.trace.as_str(), outcome(duplicate).as_str()),
            (LATER, "duplicates"),
            "{store} {handler}"
        );
        assert_eq!(duplicate.links, std::slice::from_ref(&link), "{store} {handler}");
        // A copy of a duplicate links to no span but that of the run.
        let later = run(&scene, &collector, &message(LATEST).repeat(2));
        let mut links = later.iter().flat_map(|span| &span.links);
        assert!(later.len() == 2 && links.all(|found| *found == link), "{store} {handler}: {later:?}");

        let explained = json(&scene.execute("keys explain --json --typed @ 1"));
        assert_eq!(
            (&explained["trace_id"], &explained["span_id"]),
            (&TRACE.into(), &handled.id.clone().into())
        );
        let got = json(&scene.execute("keys get --json --typed @ 1"));
        assert_eq!((&got["trace_id"], &got["result_bytes"]), (&TRACE.into(), &Value::Null), "{got}");
        let text = scene.execute("keys explain --typed @ 1").stdout;
        assert!(text.contains(&format!("  trace        {TRACE}\n")), "{text}");
    }
}

#[test]
fn without_the_option_nothing_is_kept() {
    let collector = Collector::start();
    let scene = scene("sqlite]\npath = 'onceward.db'", EXEC, &format!("otlp = '{}'", collector.url()));
    for trace in [TRACE, LATER] {
        let spans = run(&scene, &collector, &message(trace).repeat(2));
        assert!(spans.len() == 2 && spans.iter().all(|span| span.links.is_empty()), "{spans:?}");
    }
    let explained = json(&scene.execute("keys explain --json --typed @ 1"));
    assert_eq!((&explained["state"], &explained["trace_id"]), (&"completed".into(), &Value::Null));
}

/// The history of a key outlives its record.
#[test]
fn explain_prints_who_changed_a_key_and_why() {
    let scene = scene("sqlite]\npath = 'onceward.db'", EXEC, "");
    scene.write("orders.ndjson", &message(TRACE));
    assert_eq!(scene.execute("run @").code(), Some(0));
    let mut forget = scene.command("keys forget --yes --typed @ 1 --why");
    forget.arg("charged in the wrong currency").env_remove("SUDO_USER").env("USER", "mira");
    assert_eq!(scene.start(forget).end().code(), Some(0));

    let unknown = scene.execute("keys explain --json --typed @ 1");
    let explained = json(&unknown);
    assert_eq!((unknown.code(), &explained["state"]), (Some(1), &"unknown".into()), "{unknown:?}");
    let [entry] = &explained["history"].as_array().unwrap()[..] else { panic!("{explained}") };
    for (name, value) in [
        ("action", "forget"),
        ("before", "completed"),
        ("user", "mira"),
        ("why", "charged in the wrong currency"),
        ("key", explained["hash"].as_str().unwrap()),
    ] {
        assert_eq!(entry[name], value, "{name}: {entry}");
    }
    assert_eq!(explained["history_cut"], false);

    let completed = scene.execute("keys complete --yes --typed @ 1");
    assert_eq!(completed.code(), Some(0), "{completed:?}");
    let text = scene.execute("keys explain --typed @ 1").stdout;
    let history: Vec<_> = text.lines().filter(|line| line.starts_with("  history ")).collect();
    assert_eq!(history.len(), 2, "{text}");
    assert!(
        history[0].ends_with("forget   (was completed) by mira: charged in the wrong currency"),
        "{text}"
    );
    assert!(history[1].contains("complete (was unknown) by "), "{text}");
    // It is no history of another key, and no entry about a letter.
    assert!(!scene.execute("keys explain @ 2").stdout.contains("history"));
    assert_eq!(scene.execute("dlq log @").stdout, "");
    let long = scene.execute(&format!("keys forget --yes --typed @ 1 --why {}", "x".repeat(501)));
    assert_eq!(long.code(), Some(2), "{long:?}");
}

/// Changes the store's file from outside.
fn execute(scene: &Scene, sql: &'static str) {
    let database = format!("sqlite:{}", scene.path("onceward.db").display());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut conn = SqliteConnection::connect(&database).await.unwrap();
        conn.execute(sql).await.unwrap();
    });
}

/// The changes in the history of the key.
fn actions(scene: &Scene) -> Vec<String> {
    let explained = json(&scene.execute("keys explain --json --typed @ 1"));
    let history = explained["history"].as_array().unwrap();
    history.iter().map(|entry| entry["action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn entries_older_than_the_retention_are_removed_by_the_command_and_by_a_run() {
    let scene = scene("sqlite]\npath = 'onceward.db'\naudit_retention = '30d'", EXEC, "");
    scene.write("orders.ndjson", &message(TRACE));
    assert_eq!(scene.execute("run @").code(), Some(0));
    assert_eq!(scene.execute("keys forget --yes --typed @ 1").code(), Some(0));
    assert_eq!(scene.execute("keys complete --yes --typed @ 1").code(), Some(0));
    assert_eq!(json(&scene.execute("keys purge --json @"))["audit_entries_removed"], 0);
    assert_eq!(actions(&scene), ["forget", "complete"]);

    execute(&scene, "UPDATE onceward_audit SET written_at = written_at - 30 * 86400000000 WHERE number = 1");
    assert!(scene.execute("keys purge @").stdout.ends_with("1 old entries of the audit trail removed\n"));
    assert_eq!(actions(&scene), ["complete"]);

    execute(&scene, "UPDATE onceward_audit SET written_at = written_at - 30 * 86400000000");
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    scene
        .write("onceward.toml", &config.replace("format = 'envelope'", "format = 'envelope'\nfollow = true"));
    let running = scene.start(scene.command("run @"));
    wait("the run has removed it", || running.stderr().contains("old entries of the audit trail removed"));
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
    assert!(actions(&scene).is_empty());
}

#[test]
fn explain_prints_who_redrove_the_letter_of_a_key_and_why() {
    let handler = "[handler.exec]\ncommand = ['sh', '-c', 'test -e fixed || exit 65']\n";
    let scene = scene("sqlite]\npath = 'onceward.db'", handler, "");
    scene.write("orders.ndjson", &message(TRACE));
    assert_eq!(scene.execute("run @").code(), Some(3), "the message is dead-lettered");
    scene.write("fixed", "");
    let mut redrive = scene.command("dlq redrive --yes @ --why");
    redrive.arg("fixed in 4.2.1").env_remove("SUDO_USER").env("USER", "mira");
    let redriven = scene.start(redrive).end();
    assert!(redriven.stdout.contains("redriven=1 "), "{redriven:?}");
    assert_eq!(scene.execute("run @").code(), Some(0));

    let explained = json(&scene.execute("keys explain --json --typed @ 1"));
    assert_eq!((&explained["state"], &explained["generation"]), (&"completed".into(), &1.into()));
    assert_eq!(actions(&scene), ["redrive", "redriven"]);
    for entry in explained["history"].as_array().unwrap() {
        assert_eq!((&entry["user"], &entry["why"]), (&"mira".into(), &"fixed in 4.2.1".into()), "{entry}");
    }
    let text = scene.execute("keys explain --typed @ 1").stdout;
    let words = "(generation 0, permanent) by mira: fixed in 4.2.1\n";
    assert_eq!(text.matches(words).count(), 2, "{text}");
    assert_eq!(scene.execute("dlq log @").stdout.lines().count(), 2);
}
