//! A collector of traces, metrics and log lines, by OTLP over HTTP, that keeps what it receives: [`Collector`].

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::resource::v1::Resource;
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
    /// Trace and span of each link, in hexadecimal digits.
    pub links: Vec<(String, String)>,
    attributes: Vec<KeyValue>,
}

impl Span {
    /// The text of an attribute.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.attributes, key)
    }
}

/// A data point of a metric as it was received.
#[derive(Clone, Debug)]
pub struct Point {
    /// The name of the service that sent it.
    pub service: String,
    /// The id of the process that sent it.
    pub instance: String,
    /// The metric.
    pub name: String,
    /// The metric's unit.
    pub unit: String,
    /// `gauge`, `sum` or `histogram`.
    pub kind: &'static str,
    /// The value, or the sum of a histogram.
    pub value: f64,
    /// The number of values; 0 for others than histograms.
    pub count: u64,
    /// Traces of its exemplars, in hexadecimal digits.
    pub exemplars: Vec<String>,
    attributes: Vec<KeyValue>,
}

impl Point {
    /// The text of an attribute.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.attributes, key)
    }
}

/// A log line as it was received.
#[derive(Clone, Debug)]
pub struct Line {
    /// The name of the service that sent it.
    pub service: String,
    /// `INFO`, `WARN`, …
    pub severity: String,
    /// The sentence.
    pub body: String,
    /// The module that it is from.
    pub target: String,
    attributes: Vec<KeyValue>,
}

impl Line {
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
        self.of("traces", spans_of)
    }

    /// All data points so far; those of a later export are behind those of an earlier one.
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        self.of("metrics", points_of)
    }

    /// All log lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.of("logs", lines_of)
    }

    fn of<T>(&self, signal: &str, parts: fn(&[u8]) -> Vec<T>) -> Vec<T> {
        let is_it = |request: &&Request| request.head.starts_with(&format!("POST /v1/{signal} "));
        self.requests().iter().filter(is_it).flat_map(|request| parts(&request.body)).collect()
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
        let service = of_resource(resource.resource.as_ref(), "service.name");
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                service: service.clone(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: span.kind,
                times: (span.start_time_unix_nano, span.end_time_unix_nano),
                // 2 is the number of an error.
                is_error: span.status.is_some_and(|status| status.code == 2),
                links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                attributes: span.attributes,
            });
        }
    }
    spans
}

fn points_of(body: &[u8]) -> Vec<Point> {
    let request = ExportMetricsServiceRequest::decode(body).expect("a request of the protocol");
    let mut points = Vec::new();
    for resource in request.resource_metrics {
        let of = |key| of_resource(resource.resource.as_ref(), key);
        let (service, instance) = (of("service.name"), of("service.instance.id"));
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            let point = |kind, value, count, exemplars, attributes| Point {
                service: service.clone(),
                instance: instance.clone(),
                name: metric.name.clone(),
                unit: metric.unit.clone(),
                kind,
                value,
                count,
                exemplars,
                attributes,
            };
            let (kind, numbers) = match metric.data.expect("data") {
                Data::Gauge(gauge) => ("gauge", gauge.data_points),
                Data::Sum(sum) => ("sum", sum.data_points),
                Data::Histogram(histogram) => {
                    points.extend(histogram.data_points.into_iter().map(|found| {
                        let traces = found.exemplars.iter().map(|exemplar| hex(&exemplar.trace_id)).collect();
                        let sum = found.sum.unwrap_or_default();
                        point("histogram", sum, found.count, traces, found.attributes)
                    }));
                    continue;
                }
                other => panic!("no metric of ours: {other:?}"),
            };
            points.extend(numbers.into_iter().map(|found| {
                let value = match found.value.expect("a value") {
                    number_data_point::Value::AsDouble(value) => value,
                    #[allow(clippy::cast_precision_loss, reason = "values of tests are small")]
                    number_data_point::Value::AsInt(value) => value as f64,
                };
                point(kind, value, 0, Vec::new(), found.attributes)
            }));
        }
    }
    points
}

fn lines_of(body: &[u8]) -> Vec<Line> {
    let request = ExportLogsServiceRequest::decode(body).expect("a request of the protocol");
    let mut lines = Vec::new();
    for resource in request.resource_logs {
        let service = of_resource(resource.resource.as_ref(), "service.name");
        for scope in resource.scope_logs {
            let target = scope.scope.map(|scope| scope.name).unwrap_or_default();
            for record in scope.log_records {
                lines.push(Line {
                    service: service.clone(),
                    severity: record.severity_text,
                    body: record.body.as_ref().map(shown).unwrap_or_default(),
                    target: target.clone(),
                    attributes: record.attributes,
                });
            }
        }
    }
    lines
}

fn of_resource(resource: Option<&Resource>, key: &str) -> String {
    resource.and_then(|resource| text(&resource.attributes, key)).unwrap_or_default()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(found.value.as_ref().map(shown).unwrap_or_default())
}

fn shown(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
