//! The status page's data and `onceward top`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::Value;

use super::scene::{ORDERS, Running, Scene, wait};
use super::telemetry::{address, request};

/// What only a handler says.
const CANARY: &str = "hunter2canary";

/// The third order is refused.
const HANDLER: &str = r#"command = ["sh", "-c", 'read -r o || true; case $o in *3}) exit 65;; esac']"#;

fn run(scene: &Scene) -> (Running, String) {
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n");
    let running = scene.start(scene.command("run @"));
    let address = address(&running);
    wait("every order has ended", || {
        let text = request(&address, "GET /metrics").1;
        text.contains("onceward_dead_lettered_total{scope=\"billing\"} 1\n")
            && text.contains("onceward_handled_total{scope=\"billing\"} 2\n")
            && text.contains("onceward_in_flight{scope=\"billing\"} 0\n")
    });
    (running, address)
}

fn scene() -> Scene {
    let source = format!("{ORDERS}follow = true\n");
    let telemetry = "[telemetry]\nlisten = '127.0.0.1:0'\n";
    Scene::new(&format!("{source}[store.memory]\n[handler.exec]\n{HANDLER}\n{telemetry}"))
}

/// The head of a response.
fn head(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_owned()
}

#[test]
fn the_page_and_its_figures_are_served_and_cannot_be_changed_or_embedded() {
    let scene = scene();
    let (running, address) = run(&scene);
    for (path, content_type) in [
        ("/", "text/html"),
        ("/status", "text/html"),
        ("/status.css", "text/css"),
        ("/status.js", "text/javascript"),
        ("/status.json", "application/json"),
    ] {
        let head = head(&address, path);
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        for header in [
            content_type,
            "default-src 'none'; script-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
        ] {
            assert!(head.contains(header), "{path}: {header}: {head}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert_eq!(request(&address, &format!("{method} {path}")).0, 405, "{method} {path}");
        }
    }
    let figures: Value = serde_json::from_str(&request(&address, "GET /status.json").1).unwrap();
    for (pointer, value) in [
        ("/scope", "billing".into()),
        ("/work", "run".into()),
        ("/state", "ready".into()),
        ("/pipeline/counts/0", vec![Value::from("received"), 4.into()].into()),
        ("/pipeline/source/state", "up".into()),
        ("/pipeline/store_up", true.into()),
        ("/pipeline/duplicate_age/count", 1.into()),
        ("/pipeline/pauses", Value::Array(Vec::new())),
        ("/pipeline/key_from/0", vec![Value::from("json:/id"), 4.into()].into()),
        ("/letters/0/reason", "permanent".into()),
    ] {
        assert_eq!(figures.pointer(pointer), Some(&value), "{pointer}: {figures}");
    }
    let letter = &figures["letters"][0];
    let dead = scene.lines("dead.ndjson").concat();
    assert!(dead.contains(letter["key"].as_str().unwrap()), "{letter}: {dead}");
    assert!(letter["origin"].as_str().unwrap().ends_with("orders.ndjson"), "{letter}");
    let errors = figures["errors"].to_string();
    assert!(errors.contains("store-in-memory"), "{errors}");
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn top_shows_the_figures_once_or_until_a_signal() {
    let scene = scene();
    let (running, address) = run(&scene);
    let once = scene.execute(&format!("top --once --address {address} @"));
    assert_eq!(once.code(), Some(0), "{once:?}");
    for said in
        ["onceward run billing", "\nready\n", "received=4 handled=2 duplicates=1", "permanent", "WARN"]
    {
        assert!(once.stdout.contains(said), "{said}: {once:?}");
    }
    assert!(!once.stdout.contains('\u{1b}'), "{once:?}");
    let shown = Scene::new("");
    let mut top = scene.command(&format!("top --address {address} @"));
    top.env("TERM", "xterm");
    let top = shown.start(top);
    wait("a second frame", || {
        let text = std::fs::read_to_string(shown.path("stdout")).unwrap();
        text.matches("onceward run billing").count() >= 2
    });
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
    wait("the silence", || {
        std::fs::read_to_string(shown.path("stdout")).unwrap().contains("does not answer")
    });
    top.signal(Signal::INT);
    assert_eq!(top.end().code(), Some(0));
}

#[test]
fn top_says_why_there_are_no_figures() {
    let scene = scene();
    let port = scene.execute("top --once @");
    assert_eq!(port.code(), Some(78), "{port:?}");
    assert!(port.stderr.contains("telemetry.listen: has port 0"), "{port:?}");
    // No process listens there once the listener is dropped.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nothing = scene.execute(&format!("top --once --address {free} @"));
    assert_eq!(nothing.code(), Some(1), "{nothing:?}");
    assert!(nothing.stderr.starts_with(&format!("nothing shows figures on {free} (")), "{nothing:?}");
    scene.configure(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{HANDLER}\n"));
    let unset = scene.execute("top @");
    assert_eq!(unset.code(), Some(78), "{unset:?}");
    assert!(unset.stderr.contains("telemetry.listen: is not set"), "{unset:?}");
}

#[test]
fn no_text_of_a_handler_is_shown_but_by_the_log_and_readiness() {
    let source = format!("{ORDERS}follow = true\n");
    for (code, down) in [(65, "20 different messages failed in a row"), (126, "unavailable")] {
        let handler = format!("command = ['sh', '-c', 'echo {CANARY} >&2; exit {code}']\n");
        let telemetry = "[telemetry]\nlisten = '127.0.0.1:0'\n";
        let scene = Scene::new(&format!("{source}[store.memory]\n[handler.exec]\n{handler}{telemetry}"));
        let orders: String = (0..40).map(|id| format!("{{\"id\":{id}}}\n")).collect();
        scene.write("orders.ndjson", &orders);
        let running = scene.start(scene.command("run @"));
        let address = address(&running);
        wait("the handler is down", || request(&address, "GET /health/ready").1.contains(CANARY));
        let figures = request(&address, "GET /status.json").1;
        assert!(!figures.contains(CANARY), "{figures}");
        let figures: Value = serde_json::from_str(&figures).unwrap();
        assert_eq!(figures["pipeline"]["handler_down"], down, "{figures}");
        assert!(figures["state"].as_str().unwrap().starts_with("the handler is unavailable"), "{figures}");
        let top = scene.execute(&format!("top --once --address {address} @"));
        assert!(top.stdout.contains(&format!("down: {down}")) && !top.stdout.contains(CANARY), "{top:?}");
        drop(running);
    }
}
