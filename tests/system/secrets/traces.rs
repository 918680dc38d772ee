//! Exported spans, metrics and log lines hold no secret, neither of the configuration nor of the standard variables, and a
//! failed export is logged without one.

use onceward_test_servers::otlp::{Collector, Request, Span};
use onceward_test_support::process::Ended;
use onceward_test_support::scene::Scene;

use super::leaks::leak;
use super::{CANARY, EXEC, HTTP, SQL, assert_silent, scene};
use crate::stage::PATIENCE;

/// A login in all places of the standard variables.
const HEADERS: &str = "x-api-key=hunter2canary";

const RUN: [&str; 2] = ["run", "onceward.toml"];

/// Runs with secrets everywhere, and with traces that go to `otlp`.
fn run(scene: &Scene, otlp: &str) -> Ended {
    let mut command = scene.command(&RUN);
    command
        .env("SECRET", CANARY)
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .env("OTEL_LOGS_EXPORTER", "otlp")
        .env("OTEL_EXPORTER_OTLP_HEADERS", HEADERS)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp);
    let ended = scene.start(&mut command).wait_within(PATIENCE);
    assert_silent(scene, &RUN, &ended);
    ended
}

/// Spans, metrics and log lines in lossy text: protobuf has texts as they are.
fn assert_no_secret(requests: &[Request]) {
    for request in requests {
        assert_eq!(leak(&String::from_utf8_lossy(&request.body), CANARY), None, "it has the password");
        // Where it belongs: without it, nothing would be shown.
        assert!(request.head.contains(&format!("x-api-key: {CANARY}\n")), "{}", request.head);
    }
}

fn failed(span: &&Span) -> bool {
    span.is_error
}

#[test]
fn what_is_exported_about_deliveries_that_succeed_and_fail_holds_no_secret() {
    let (takes, fails) = (Collector::start(), Collector::with_status("500 Internal Server Error"));
    let at = |server: &Collector| {
        let url = server.url();
        let (_, port) = url.rsplit_once(':').expect("a port");
        HTTP.replace("PORT", port)
    };
    let secret = format!("Bearer {CANARY}");
    for (config, has_failed) in
        [(at(&takes), false), (at(&fails), true), (EXEC.to_owned(), true), (SQL.to_owned(), true)]
    {
        let collector = Collector::start();
        let scene = scene(&config);
        let ended = run(&scene, &collector.url_with(&format!("user:{CANARY}")));
        assert_eq!(ended.code(), Some(if has_failed { 3 } else { 0 }), "{ended:#?}");
        assert_no_secret(&collector.requests());
        assert!(collector.points().iter().any(|point| point.name == "onceward_received_total"));
        assert!(collector.lines().iter().any(|line| line.body == "pipeline started"));
        let spans = collector.spans();
        for name in ["process ", "claim", "handle", "settle"] {
            assert!(spans.iter().any(|span| span.name.starts_with(name)), "{name}: {spans:#?}");
        }
        let errors: Vec<_> = spans.iter().filter(failed).map(|span| &*span.name).collect();
        assert_eq!(errors.contains(&"handle"), has_failed, "{spans:#?}");
        assert_eq!(errors.iter().any(|name| name.starts_with("process ")), has_failed, "{spans:#?}");
    }
    // The handler's server got the secret, in the same process that exported none.
    assert!(takes.requests()[0].head.contains(&secret), "{:?}", takes.requests());
}

#[test]
fn the_login_of_a_url_is_sent_as_basic_authentication_and_printed_nowhere() {
    let collector = Collector::start();
    let config = EXEC.replace("exit 75", "exit 0");
    let scene = scene(&format!("{config}[telemetry]\notlp = \"{}\"\n", collector.url_with("user:${SECRET}")));
    let mut command = scene.command(&RUN);
    let ended = scene.start(command.env("SECRET", CANARY).env("RUST_LOG", "trace")).wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_silent(&scene, &RUN, &ended);
    let requests = collector.requests();
    // Base64 of "user:hunter2canary".
    let login = "authorization: Basic dXNlcjpodW50ZXIyY2FuYXJ5\n";
    assert!(!requests.is_empty() && requests.iter().all(|sent| sent.head.contains(login)), "{requests:?}");
}

#[test]
fn a_collector_that_refuses_or_is_away_is_named_without_its_login() {
    let refusing = Collector::with_status("401 Unauthorized");
    let login = format!("user:{CANARY}");
    let away = format!("http://{login}@127.0.0.1:1/{CANARY}?token={CANARY}");
    for (url, cause) in [(refusing.url_with(&login), "401"), (away, "error sending request")] {
        let scene = scene(&EXEC.replace("exit 75", "exit 0"));
        let ended = run(&scene, &url);
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
        for things in ["spans", "metrics", "log lines"] {
            let sentence = format!("{things} not exported");
            let line = ended.stderr.lines().find(|line| line.contains(&sentence));
            assert!(line.is_some_and(|line| line.contains(cause)), "{things}: {ended:#?}");
        }
    }
    assert_no_secret(&refusing.requests());
}

#[test]
fn a_wrong_url_of_a_collector_is_refused_without_being_quoted() {
    for wrong in [
        format!("http://user:{CANARY}@127.0.0.1:port/"),
        format!("ftp://user:{CANARY}@127.0.0.1/"),
        format!("user:{CANARY}@127.0.0.1:4318"),
        format!("http://user:{CANARY}@192.0.2.1:4318"),
        CANARY.to_owned(),
    ] {
        let scene = scene(EXEC);
        let ended = run(&scene, &wrong);
        assert_eq!(ended.code(), Some(78), "{wrong}: {ended:#?}");
        assert!(ended.stderr.contains("cannot export traces"), "{ended:#?}");
    }
}
