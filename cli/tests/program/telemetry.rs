//! /metrics and /health over the loopback.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;

use super::scene::{ORDERS, Running, Scene, until, wait};

/// The address from the log: the port is the system's choice.
pub(crate) fn address(running: &Running) -> String {
    until("the address", || {
        let log = running.stderr();
        let line = log.lines().find(|line| line.contains("/health/ready"))?;
        line.split("address=").nth(1).map(str::to_owned)
    })
}

/// An answer that takes longer never comes.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// One request; status and body.
pub(crate) fn request(address: &str, line: &str) -> (u16, String) {
    ask(&mut TcpStream::connect(address).unwrap(), line)
}

fn ask(stream: &mut TcpStream, line: &str) -> (u16, String) {
    stream.set_read_timeout(Some(READ_LIMIT)).unwrap();
    write!(stream, "{line} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Checks what is measured of two messages and a duplicate, and of the process.
fn has_measurements(address: &str) {
    wait("a settlement", || {
        let text = request(address, "GET /metrics").1;
        !text.contains("onceward_settle_seconds_count{scope=\"billing\"} 0\n")
    });
    let text = request(address, "GET /metrics").1;
    let delivered = |outcome: &str, count: u32| {
        let start = "onceward_deliveries_total{scope=\"billing\",source=\"file\",origin=\"";
        let end = format!("orders.ndjson\",outcome=\"{outcome}\"}} {count}");
        let mut lines = text.lines();
        assert!(lines.any(|line| line.starts_with(start) && line.ends_with(&end)), "{end}: {text}");
    };
    delivered("handled", 2);
    delivered("duplicates", 1);
    for line in [
        "onceward_handler_seconds_count{scope=\"billing\",outcome=\"succeeded\"} 2",
        "onceward_handler_seconds_count{scope=\"billing\",outcome=\"failed\"} 0",
        "onceward_attempts_sum{scope=\"billing\"} 2.0",
        "onceward_duplicate_age_seconds_count{scope=\"billing\"} 1",
        "onceward_ttl_seconds{scope=\"billing\"} 691200",
        "onceward_intake_paused{scope=\"billing\",reason=\"store\"} 0",
        "onceward_dead_letters_total{scope=\"billing\",reason=\"permanent\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    for measure in ["queue_wait", "claim", "complete", "settle"] {
        let start = format!("onceward_{measure}_seconds_count{{scope=\"billing\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u32>().ok());
        assert!(count.is_some_and(|count| count > 0), "{start} is not in {text}");
    }
    for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"] {
        let start = format!("process_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value >= 0.0), "{start} is not in {text}");
    }
}

#[test]
fn a_run_can_be_scraped_and_asked_how_it_is() {
    let handler = r#"command = ["sh", "-c", "while test -e hold; do sleep 0.02; done"]"#;
    let telemetry = "[telemetry]\nlisten = '127.0.0.1:0'\n";
    let source = format!("{ORDERS}follow = true\n");
    let scene = Scene::new(&format!("{source}[store.memory]\n[handler.exec]\n{handler}\n{telemetry}"));
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":1}\n{\"id\":2}\n");
    let running = scene.start(scene.command("run @"));
    let address = address(&running);
    wait("it is ready", || request(&address, "GET /health/ready") == (200, "ready\n".to_owned()));
    let metric = |name: &str| {
        let (status, text) = request(&address, "GET /metrics");
        assert_eq!(status, 200);
        let line = format!("onceward_{name}{{scope=\"billing\"}} ");
        let value = text.lines().find_map(|found| found.strip_prefix(&line).map(str::to_owned));
        value.unwrap_or_else(|| panic!("{line} is not in {text}"))
    };
    wait("both effects", || metric("handled_total") == "2");
    assert_eq!((metric("received_total"), metric("duplicates_total")), ("3".into(), "1".into()));
    assert_eq!(
        (metric("in_flight"), metric("in_flight_bytes"), metric("store_up")),
        ("0".into(), "0".into(), "1".into())
    );
    assert_eq!(
        (metric("waiting"), metric("blocked_lanes"), metric("handler_up")),
        ("0".into(), "0".into(), "1".into())
    );
    let keys = "onceward_keys_total{scope=\"billing\",from=\"json:/id\"} 3\n";
    assert!(request(&address, "GET /metrics").1.contains(keys), "{}", request(&address, "GET /metrics").1);
    assert!(request(&address, "GET /metrics").1.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"))));
    has_measurements(&address);
    assert_eq!(request(&address, "GET /health/live").0, 200);
    assert_eq!(request(&address, "GET /nothing").0, 404);
    assert_eq!(request(&address, "POST /metrics").0, 405);
    assert_eq!(request(&address, "HEAD /metrics").1, "");

    scene.write("hold", "");
    scene.append("orders.ndjson", "{\"id\":3}\n");
    wait("a run", || metric("in_flight") == "1");
    running.signal(Signal::TERM);
    wait("it is draining", || request(&address, "GET /health/ready") == (503, "draining\n".to_owned()));
    assert_eq!(request(&address, "GET /health/live").0, 200, "a drain is no reason to be restarted");
    std::fs::remove_file(scene.path("hold")).unwrap();
    assert_eq!(running.end().code(), Some(0));
}

/// A run with nothing to do, and where it listens.
fn idle_run() -> (Scene, Running, String) {
    let source = format!("{ORDERS}follow = true\n");
    let scene = Scene::new(&format!(
        "{source}[store.memory]\n[handler.exec]\ncommand = ['true']\n[telemetry]\nlisten = '127.0.0.1:0'\n"
    ));
    scene.write("orders.ndjson", "");
    let running = scene.start(scene.command("run @"));
    let address = address(&running);
    wait("it is ready", || request(&address, "GET /health/ready") == (200, "ready\n".to_owned()));
    (scene, running, address)
}

/// Sends nothing.
fn idle(_: &mut TcpStream) {}

/// Stops within a head.
fn half_head(stream: &mut TcpStream) {
    let _ = stream.write_all(b"GET /health/live HTTP/1.1\r\nHost:");
}

/// Asks for much and reads nothing.
fn deaf(stream: &mut TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let _ = stream.write(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1_000).as_slice());
}

/// Announces a body that never comes.
fn half_body(stream: &mut TcpStream) {
    let _ = stream.write_all(b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nx");
}

/// Closes its sending side within a head.
fn half_closed(stream: &mut TcpStream) {
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_health_check_is_answered_however_many_connections_are_open() {
    let (_scene, running, address) = idle_run();
    for misbehave in [idle, half_head, deaf, half_body, half_closed] {
        for count in [32, 64, 500] {
            let open: Vec<_> = (0..count)
                .map(|_| {
                    let mut stream = TcpStream::connect(&address).unwrap();
                    misbehave(&mut stream);
                    stream
                })
                .collect();
            for _ in 0..3 {
                assert_eq!(request(&address, "GET /health/live"), (200, "live\n".to_owned()));
                assert_eq!(request(&address, "GET /health/ready").0, 200);
                assert_eq!(request(&address, "GET /metrics").0, 200);
            }
            drop(open);
            assert_eq!(request(&address, "GET /health/live").0, 200, "they have left");
        }
    }
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn a_slow_health_check_is_answered_though_others_come_between() {
    let (_scene, running, address) = idle_run();
    let mut probe = TcpStream::connect(&address).unwrap();
    let _others: Vec<_> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    assert_eq!(request(&address, "GET /health/live").0, 200, "all of them were accepted");
    assert_eq!(ask(&mut probe, "GET /health/live"), (200, "live\n".to_owned()));
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn a_connection_is_closed_behind_its_first_answer() {
    let (_scene, running, address) = idle_run();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(READ_LIMIT)).unwrap();
    // The second request is not in the first one's packet: closing with unread bytes would take the answer away.
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("live\n"), "{answer}");
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

#[cfg(all(feature = "kafka", feature = "sqlite"))]
#[test]
fn a_relay_tells_what_waits_and_what_failed() {
    let source = format!("{ORDERS}[store.sqlite]\npath = 'onceward.db'\n");
    let put = "INSERT INTO onceward_outbox (destination, order_key, payload) VALUES \
               ('events', CAST('customer' AS BLOB), CAST($1 AS BLOB))";
    // No broker runs there: the client is configured to give a message up soon.
    let outbox =
        "[outbox.kafka]\nbrokers = ['127.0.0.1:1']\n[outbox.kafka.properties]\nmessage.timeout.ms = 300\n";
    let scene = Scene::new(&format!(
        "{source}[handler.sql]\nstatement = \"{put}\"\ntimeout = '10s'\n{outbox}[telemetry]\nlisten = '127.0.0.1:0'\n"
    ));
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n");
    let ended = scene.start(scene.command("run @")).end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let relay = scene.start(scene.command("outbox relay @"));
    let address = address(&relay);
    wait("it is ready", || request(&address, "GET /health/ready") == (200, "ready\n".to_owned()));
    let metric = |name: &str| -> u64 {
        let (_, text) = request(&address, "GET /metrics");
        let line = format!("onceward_{name}{{scope=\"billing\"}} ");
        let value = text.lines().find_map(|found| found.strip_prefix(&line).map(str::to_owned));
        value.unwrap_or_else(|| panic!("{line} is not in {text}")).parse().unwrap()
    };
    wait("failures", || metric("outbox_publish_failures_total") >= 2);
    wait("they are seen", || metric("outbox_failing") == 1);
    assert_eq!((metric("outbox_waiting"), metric("outbox_held"), metric("outbox_kept")), (3, 2, 0));
    assert_eq!((metric("outbox_published_total"), metric("store_up")), (0, 1));
    wait("the oldest is a second old", || metric("outbox_oldest_seconds") >= 1);
    relay.signal(Signal::TERM);
    assert_eq!(relay.end().code(), Some(0));
}
