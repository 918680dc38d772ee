//! Traces of a run, read back by a collector in this process.

use onceward_test_servers::otlp::{Collector, Span};

use super::scene::{Ended, Scene};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Two copies of one message with a trace context; the handler writes down the context that it gets.
fn traced() -> Scene {
    let scene = Scene::new(
        "[source.file]\npath = 'orders.ndjson'\nformat = 'envelope'\n[store.memory]\n[handler.exec]\n\
         command = ['sh', '-c', 'echo \"$ONCEWARD_HEADER_TRACEPARENT $ONCEWARD_HEADER_TRACESTATE\" >> seen']\n",
    );
    let message = format!(
        "{{\"payload\":\"{{\\\"id\\\":1}}\",\"headers\":{{\"traceparent\":\"00-{TRACE}-{PARENT}-01\",\
         \"tracestate\":\"a=1\"}}}}\n"
    );
    scene.write("orders.ndjson", &message.repeat(2));
    scene
}

fn run(scene: &Scene, variables: &[(&str, &str)]) -> Ended {
    let mut command = scene.command("run @");
    command.envs(variables.iter().copied());
    scene.start(command).end()
}

#[test]
fn each_delivery_has_a_span_in_its_producers_trace_with_its_steps_in_it() {
    let collector = Collector::start();
    let scene = traced();
    // The level of the log does not matter.
    let ended = run(&scene, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url()), ("ONCEWARD_LOG", "error")]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE && span.service == "onceward"), "{spans:?}");
    let deliveries: Vec<_> = spans.iter().filter(|span| span.parent == PARENT).collect();
    assert_eq!(deliveries.len(), 2, "{spans:?}");
    let with_outcome = |outcome: &str| {
        let mut found = deliveries.iter();
        let found = found.find(|span| span.attribute("onceward.outcome").as_deref() == Some(outcome));
        *found.unwrap_or_else(|| panic!("{outcome}: {deliveries:?}"))
    };
    let (handled, duplicate) = (with_outcome("handled"), with_outcome("duplicates"));
    // 5 is the number of "consumer".
    assert!(
        handled.kind == 5 && handled.name.starts_with("process ") && handled.name.ends_with("orders.ndjson")
    );
    for (key, value) in [
        ("messaging.system", "file"),
        ("messaging.operation.type", "process"),
        ("messaging.message.body.size", "8"),
        ("messaging.destination.partition.id", "0"),
    ] {
        assert_eq!(handled.attribute(key).as_deref(), Some(value), "{key}: {handled:?}");
    }
    assert_eq!(handled.attribute("onceward.key").map(|key| key.len()), Some(32), "{handled:?}");
    let steps = |of: &Span| {
        let within = spans.iter().filter(|span| span.parent == of.id);
        let mut names: Vec<_> = within.map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(steps(handled), ["claim", "complete", "handle", "settle"]);
    assert_eq!(steps(duplicate).last(), Some(&"settle"));
    let paths = ["POST /v1/traces HTTP/1.1\n", "POST /v1/metrics HTTP/1.1\n"];
    assert!(collector.requests().iter().all(|sent| paths.iter().any(|path| sent.head.starts_with(path))));
    let run = spans.iter().find(|span| span.name == "handle").unwrap();
    assert_eq!(run.attribute("onceward.attempt").as_deref(), Some("1"));
    assert!(handled.times.0 <= run.times.0 && run.times.1 <= handled.times.1, "{run:?} {handled:?}");
    // The handler's own spans are within that of its run.
    assert_eq!(scene.lines("seen"), [format!("00-{TRACE}-{}-01 a=1", run.id)]);
}

#[test]
fn the_configuration_names_a_collector_and_the_standard_variables_the_service() {
    let collector = Collector::start();
    let scene = traced();
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    scene.write("onceward.toml", &format!("{config}\n[telemetry]\notlp = '{}'\n", collector.url()));
    let ended = run(&scene, &[("OTEL_SERVICE_NAME", "billing")]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let spans = collector.spans();
    assert!(!spans.is_empty() && spans.iter().all(|span| span.service == "billing"), "{spans:?}");
}

#[test]
fn without_a_collector_the_handler_gets_the_context_as_it_was() {
    let collector = Collector::start();
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url()), ("OTEL_SDK_DISABLED", "true")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url()), ("OTEL_TRACES_EXPORTER", "none")],
    ] {
        let scene = traced();
        let ended = run(&scene, variables);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert_eq!(scene.lines("seen"), [format!("00-{TRACE}-{PARENT}-01 a=1")], "{variables:?}");
    }
    assert!(collector.spans().is_empty());
}

#[test]
fn a_collector_that_is_away_or_refuses_holds_up_no_message_and_is_named_in_the_log() {
    let refusing = Collector::with_status("401 Unauthorized");
    for (url, cause) in [("http://127.0.0.1:1", "Connection refused"), (&refusing.url(), "401 Unauthorized")]
    {
        let scene = traced();
        let ended = run(&scene, &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]);
        assert_eq!((ended.code(), scene.lines("seen").len()), (Some(0), 1), "{ended:?}");
        let lines: Vec<_> = ended.stderr.lines().filter(|line| line.contains("spans not exported")).collect();
        assert!(lines.iter().any(|line| line.contains(cause)), "{ended:?}");
    }
}

#[test]
fn variables_that_ask_for_what_the_exporter_does_not_have_are_refused_by_name() {
    let collector = Collector::start();
    for (name, value, is_accepted) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", false),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", false),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", true),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", false),
    ] {
        let scene = traced();
        let ended = run(&scene, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()), (name, value)]);
        assert_eq!(ended.code(), Some(if is_accepted { 0 } else { 78 }), "{name}: {ended:?}");
        assert_eq!(ended.stderr.contains(name), !is_accepted, "{ended:?}");
        // Nothing ran, so that the messages are there for the next start.
        assert_eq!(scene.path("seen").exists(), is_accepted);
    }
}

/// A collector that accepts connections and never answers delays the end of the program by a bounded time.
#[test]
fn a_collector_that_does_not_answer_is_given_up_at_the_end() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let scene = traced();
    let ended = run(&scene, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    assert_eq!((ended.code(), scene.lines("seen").len()), (Some(0), 1), "{ended:?}");
    assert!(ended.stderr.contains("last spans not exported"), "{ended:?}");
}
