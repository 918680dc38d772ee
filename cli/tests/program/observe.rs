//! Reports of `onceward observe`.

use rustix::process::Signal;
use serde_json::Value;

use super::scene::{CHARGE, ORDERS, Scene, wait};

/// A copy, another payload under a known key, and a message without a key.
const ORDERS_WITH_TROUBLE: &str =
    "{\"id\":1}\n{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n{\"id\":2,\"total\":9}\n{\"total\":9}\n";

fn scene(source: &str, mode: &str) -> Scene {
    let pipeline = "[pipeline]\nconcurrency = 1\n";
    let scene = Scene::new(&format!("{source}[store.memory]\n[handler.exec]\n{CHARGE}\n{pipeline}"));
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    scene.write("onceward.toml", &format!("{mode}{config}"));
    scene
}

fn json(stdout: &str) -> Value {
    serde_json::from_str(stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

#[test]
fn a_report_has_duplicates_mismatches_and_keys_and_every_message_was_handled() {
    let scene = scene(ORDERS, "mode = 'enforce'\n");
    scene.write("orders.ndjson", ORDERS_WITH_TROUBLE);
    let page = scene.path("report.html");
    let words = format!("observe --json --html {} @", page.display());
    let ended = scene.execute(&words);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_eq!(scene.effects().len(), 6, "a message was not handled");
    assert!(ended.stderr.contains("duplicates included"), "{ended:?}");
    let report = json(&ended.stdout);
    for (pointer, value) in [
        ("/scope", "billing".into()),
        ("/ended_by", "empty".into()),
        ("/deliveries/received", 6.into()),
        ("/deliveries/with_key", 5.into()),
        ("/deliveries/without_key", 1.into()),
        ("/duplicates/count", 1.into()),
        ("/duplicates/rate/value", 0.2.into()),
        ("/mismatches", 1.into()),
        ("/keys/distinct", 3.into()),
        ("/keys/by_deliveries", vec![1, 2, 0, 0, 0, 0].into()),
        ("/key_from/0/from", "json:/id".into()),
        ("/key_from/0/keys", 5.into()),
        ("/recommended/key/from", Value::Null),
        ("/recommended/ttl/ttl", "8d".into()),
    ] {
        assert_eq!(report.pointer(pointer), Some(&value), "{pointer}: {report}");
    }
    let reasons = report["recommended"]["key"]["reasons"].to_string();
    assert!(reasons.contains("another payload") && reasons.contains("no usable key"), "{reasons}");
    let limits = report["limits"].to_string();
    assert!(limits.contains("The store began empty") && limits.contains("Only 6 deliveries"), "{limits}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg ").count() >= 1, "{page}");
    assert!(page.contains("default-src 'none'") && !page.contains("<script"), "{page}");
}

#[test]
fn a_time_limit_ends_the_run_and_the_report_has_the_age_of_a_duplicate() {
    let scene = scene(&format!("{ORDERS}follow = true\n"), "");
    scene.write("orders.ndjson", "{\"id\":1}\n");
    let running = scene.start(scene.command("observe --for 3s --json @"));
    wait("the first effect", || scene.effects().len() == 1);
    scene.append("orders.ndjson", "{\"id\":1}\n");
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let report = json(&ended.stdout);
    assert_eq!(
        (&report["ended_by"], &report["duplicates"]["count"]),
        (&"limit".into(), &1.into()),
        "{report}"
    );
    let observed = report["observed_ms"].as_u64().unwrap();
    assert!((3_000..20_000).contains(&observed), "{report}");
    if report["duplicates"]["of_completed"] == 1 {
        assert!(report["duplicate_age_ms"]["max"].as_u64().unwrap() <= observed, "{report}");
    }
}

#[test]
fn a_signal_ends_the_run_with_a_report_for_people() {
    let scene = scene(&format!("{ORDERS}follow = true\n"), "mode = 'observe'\n");
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n");
    let running = scene.start(scene.command("observe @"));
    wait("both effects", || scene.effects().len() == 2);
    running.signal(Signal::INT);
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    for said in [
        "2 deliveries of scope billing",
        "until a signal",
        "duplicates       0 of 2 deliveries with a key, 0.00 % (95 %: 0.00 % to ",
        "recommended key  from = [\"json:/id\"]",
        "recommended ttl  ttl = \"8d\", as configured",
        "not in these figures",
    ] {
        assert!(ended.stdout.contains(said), "{said}: {ended:?}");
    }
}

#[test]
fn the_page_is_written_where_nothing_reads_standard_output() {
    let scene = scene(ORDERS, "");
    scene.write("orders.ndjson", ORDERS_WITH_TROUBLE);
    let page = scene.path("report.html");
    let mut command = scene.command(&format!("observe --html {} @", page.display()));
    let mut child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    child.wait().unwrap();
    assert!(std::fs::read_to_string(page).unwrap().ends_with("</html>\n"));
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_a_message_is_taken() {
    let scene = scene(ORDERS, "");
    scene.write("orders.ndjson", ORDERS_WITH_TROUBLE);
    let ended = scene.execute("observe --html /no/folder/report.html @");
    assert_eq!((ended.code(), scene.effects().len()), (Some(1), 0), "{ended:?}");
    assert!(ended.stderr.starts_with("--html: cannot write /no/folder/report.html"), "{ended:?}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_handler_in_a_transaction_is_refused() {
    let scene = Scene::new(&format!(
        "{ORDERS}[store.sqlite]\npath = 'onceward.db'\n[handler.sql]\nstatement = 'select 1'\ntimeout = '5s'\n"
    ));
    scene.write("orders.ndjson", ORDERS_WITH_TROUBLE);
    let ended = scene.execute("observe @");
    assert_eq!(ended.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.contains("handler.sql: cannot run in observe mode"), "{ended:?}");
}
