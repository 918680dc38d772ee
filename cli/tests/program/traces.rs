//! Traces of a run, read back by a collector in this process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::scene::{Ended, Scene};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// An OTLP receiver that keeps all spans.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    services: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Serves until the test process ends.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self { url, spans: Arc::default(), services: Arc::default() };
        let (spans, services) = (Arc::clone(&collector.spans), Arc::clone(&collector.services));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (spans, services) = (Arc::clone(&spans), Arc::clone(&services));
                std::thread::spawn(move || serve(&mut stream.unwrap(), &spans, &services));
            }
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

/// Takes the requests of a connection until it is closed.
fn serve(stream: &mut TcpStream, spans: &Mutex<Vec<Span>>, services: &Mutex<Vec<String>>) {
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut read = Vec::new();
    let mut chunk = [0; 64 << 10];
    loop {
        while let Some((body, rest)) = whole_request(&read) {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            for resource in request.resource_spans {
                let attributes = resource.resource.unwrap_or_default().attributes;
                let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
                services
                    .lock()
                    .unwrap()
                    .extend(name.map(|name| text(name.value.and_then(|value| value.value))));
                spans.lock().unwrap().extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            read = rest.to_vec();
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => read.extend(&chunk[..count]),
            _ => return,
        }
    }
}

/// The body of the first request, if it is there as a whole, and what follows it.
fn whole_request(read: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>();
    let body = read.get(end..)?;
    let length = length.unwrap();
    (body.len() >= length).then(|| body.split_at(length))
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    Some(text(found.value.clone().and_then(|value| value.value)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

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
    let ended = run(&scene, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url), ("ONCEWARD_LOG", "error")]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
    let deliveries: Vec<_> = spans.iter().filter(|span| hex(&span.parent_span_id) == PARENT).collect();
    assert_eq!(deliveries.len(), 2, "{spans:?}");
    let outcome = |outcome: &str| {
        let found =
            deliveries.iter().find(|span| attribute(span, "onceward.outcome").as_deref() == Some(outcome));
        *found.unwrap_or_else(|| panic!("{outcome}: {deliveries:?}"))
    };
    let (handled, duplicate) = (outcome("handled"), outcome("duplicates"));
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
        assert_eq!(attribute(handled, key).as_deref(), Some(value), "{key}: {handled:?}");
    }
    assert_eq!(attribute(handled, "onceward.key").map(|key| key.len()), Some(32), "{handled:?}");
    let steps = |of: &Span| {
        let mut names: Vec<_> = spans
            .iter()
            .filter(|span| span.parent_span_id == of.span_id)
            .map(|span| span.name.clone())
            .collect();
        names.sort();
        names
    };
    assert_eq!(steps(handled), ["claim", "complete", "handle", "settle"]);
    assert_eq!(steps(duplicate).last().map(String::as_str), Some("settle"));
    let run = spans.iter().find(|span| span.name == "handle").unwrap();
    assert_eq!(attribute(run, "onceward.attempt").as_deref(), Some("1"));
    let within = |span: &Span| {
        handled.start_time_unix_nano <= span.start_time_unix_nano
            && span.end_time_unix_nano <= handled.end_time_unix_nano
    };
    assert!(within(run), "{run:?} {handled:?}");
    // The handler's own spans are within that of its run.
    assert_eq!(scene.lines("seen"), [format!("00-{TRACE}-{}-01 a=1", hex(&run.span_id))]);
    assert_eq!(*collector.services.lock().unwrap(), ["onceward"]);
}

#[test]
fn the_configuration_names_a_collector_and_the_standard_variables_the_service() {
    let collector = Collector::start();
    let scene = traced();
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    scene.write("onceward.toml", &format!("{config}\n[telemetry]\notlp = '{}'\n", collector.url));
    let ended = run(&scene, &[("OTEL_SERVICE_NAME", "billing")]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(!collector.spans().is_empty());
    assert!(collector.services.lock().unwrap().iter().all(|name| name == "billing"));
}

#[test]
fn without_a_collector_the_handler_gets_the_context_as_it_was() {
    let collector = Collector::start();
    let scene = traced();
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("OTEL_SDK_DISABLED", "true")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("OTEL_TRACES_EXPORTER", "none")],
    ] {
        let ended = run(&scene, variables);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    assert!(scene.lines("seen").iter().all(|line| *line == format!("00-{TRACE}-{PARENT}-01 a=1")));
    assert_eq!((scene.lines("seen").len(), collector.spans().len()), (3, 0));
}

#[test]
fn a_collector_that_is_away_holds_up_no_message() {
    let scene = traced();
    let ended = run(&scene, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")]);
    assert_eq!((ended.code(), scene.lines("seen").len()), (Some(0), 1), "{ended:?}");
}
