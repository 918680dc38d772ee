//! A collector of traces, by OTLP over HTTP, that keeps what it receives: [`Collector`].

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct Span {
    /// The name of the service that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, in hexadecimal digits.
    pub trace: String,
    /// Its id, in hexadecimal digits.
    pub id: String,
    /// The id of its parent, which may be empty.
    pub parent: String,
    /// Its kind, by the number of the protocol: 5 is a consumer.
    pub kind: i32,
    /// Start and end, in nanoseconds since 1970.
    pub times: (u64, u64),
    /// True if its status is an error.
    pub is_error: bool,
    attributes: Vec<KeyValue>,
}

impl Span {
    /// The text of an attribute.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.attributes, key)
    }
}

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Request {
    /// Request line and headers, in small letters but for values.
    pub head: String,
    /// The message in protobuf, whose texts are in it as they are.
    pub body: Vec<u8>,
}

/// Serves until the test process ends.
#[derive(Debug)]
pub struct Collector {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Collector {
    /// On a free port.
    ///
    /// # Panics
    /// If no port can be bound.
    #[must_use]
    pub fn start() -> Self {
        Self::with_status("200 OK")
    }

    /// One that answers with `status`, whatever it receives.
    ///
    /// # Panics
    /// If no port can be bound.
    #[must_use]
    pub fn with_status(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let collector = Self { address, requests: Arc::default() };
        let all = Arc::clone(&collector.requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = Arc::clone(&all);
                std::thread::spawn(move || serve(stream, status, &all));
            }
        });
        collector
    }

    /// Where it listens, without a path.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// As [`url`](Self::url), with `login`, such as `user:password`.
    #[must_use]
    pub fn url_with(&self, login: &str) -> String {
        format!("http://{login}@{}", self.address)
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    /// All spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.requests().iter().flat_map(|request| spans_of(&request.body)).collect()
    }
}

fn lock(requests: &Mutex<Vec<Request>>) -> MutexGuard<'_, Vec<Request>> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the requests of a connection until it is closed.
fn serve(mut stream: TcpStream, status: &str, requests: &Mutex<Vec<Request>>) {
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time limit");
    let mut read = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        while let Some((request, bytes)) = whole_request(&read) {
            lock(requests).push(request);
            read.drain(..bytes);
            if write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => read.extend(&chunk[..count]),
            _ => return,
        }
    }
}

/// The first request, if it is there as a whole, and its bytes.
fn whole_request(read: &[u8]) -> Option<(Request, usize)> {
    let end = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&read[..end]);
    let lines = head.lines().map(|line| match line.split_once(':') {
        Some((name, value)) => format!("{}:{value}\n", name.to_ascii_lowercase()),
        None => format!("{line}\n"),
    });
    let head: String = lines.collect();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.expect("a length").parse().expect("a number");
    let body = read.get(end..end + length)?.to_vec();
    Some((Request { head, body }, end + length))
}

fn spans_of(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).expect("a request of the protocol");
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let service = resource.resource.and_then(|resource| text(&resource.attributes, "service.name"));
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                service: service.clone().unwrap_or_default(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: span.kind,
                times: (span.start_time_unix_nano, span.end_time_unix_nano),
                // 2 is the number of an error.
                is_error: span.status.is_some_and(|status| status.code == 2),
                attributes: span.attributes,
            });
        }
    }
    spans
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match &found.value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => Some(text.clone()),
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
