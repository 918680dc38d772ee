//! Metrics, pushed at an interval: [`start`], [`push_regularly`].

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::Resource;
use prost::Message as _;
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use super::client::Client;
use super::collector::{Collector, refused};
use super::points::{ExportTimes, request};
use super::resource::resource;
use super::signal::Signal;
use super::{headers, last};
use crate::config::{Config, Lookup};
use crate::exit::Failure;
use crate::telemetry::metrics::read;
use crate::telemetry::watched::Watched;

/// The interval between exports, unless `OTEL_METRIC_EXPORT_INTERVAL` is set.
const INTERVAL: Duration = Duration::from_secs(60);

/// The shortest interval.
const SHORTEST: Duration = Duration::from_millis(100);

const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";

/// Set once metrics are pushed, and only then.
static EXPORTER: OnceLock<MetricsExporter> = OnceLock::new();

struct MetricsExporter {
    client: Client,
    headers: HeaderMap,
    resource: Resource,
    /// The start of all sums.
    began: SystemTime,
    interval: Duration,
    /// The environment asks for sums that are not cumulative, but not for metrics.
    asks_for_others: bool,
    watched: OnceLock<Arc<Watched>>,
    /// The time of the values that the collector took last. Held during an export: an older one must not arrive behind a newer one.
    exported: Mutex<SystemTime>,
}

/// Prepares the export if the configuration or the environment names a collector of metrics.
///
/// # Errors
/// The exporter cannot be made of these values.
pub(super) fn start(config: &Config, env: Lookup<'_>) -> Result<(), Failure> {
    let Some(collector) = Collector::find(Signal::Metrics, config, env)? else { return Ok(()) };
    let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let asks_for_others =
        set(TEMPORALITY).is_some_and(|value| !value.trim().eq_ignore_ascii_case("cumulative"));
    if asks_for_others && is_asked_for(set) {
        let what = format!("{TEMPORALITY} asks for other sums than this program has");
        let fix = "write cumulative, and have the collector convert them";
        return Err(refused(Signal::Metrics, &what, fix));
    }
    let given = Signal::Metrics.variables("HEADERS").into_iter().find_map(|name| set(&name));
    let mut headers = given.map(|text| headers::parse(&text)).unwrap_or_default();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    let interval = set("OTEL_METRIC_EXPORT_INTERVAL").and_then(|text| text.trim().parse().ok());
    let began = SystemTime::now();
    let exporter = MetricsExporter {
        client: collector.client()?,
        headers,
        resource: resource(env),
        began,
        interval: interval.map_or(INTERVAL, Duration::from_millis).max(SHORTEST),
        asks_for_others,
        watched: OnceLock::new(),
        exported: Mutex::new(began),
    };
    // A second start in one process, as in tests, keeps the first.
    let _ = EXPORTER.set(exporter);
    Ok(())
}

/// True if the variables ask for metrics by name, and not for whatever has a collector.
fn is_asked_for(set: impl Fn(&str) -> Option<String>) -> bool {
    [Signal::Metrics.exporters(), Signal::Metrics.variables("ENDPOINT")[0].clone()]
        .iter()
        .any(|name| set(name).is_some())
}

/// True if metrics are pushed.
pub(crate) fn is_on() -> bool {
    EXPORTER.get().is_some()
}

/// Pushes the metrics of `watched` in the background until the runtime ends, if they are exported.
pub(crate) fn push_regularly(watched: &Arc<Watched>) {
    let Some(exporter) = EXPORTER.get() else { return };
    // A program watches one run.
    let _ = exporter.watched.set(Arc::clone(watched));
    if exporter.asks_for_others {
        tracing::warn!("metrics are pushed as cumulative sums; {TEMPORALITY} asks for others and is ignored");
    }
    tokio::spawn(async move {
        let mut times = tokio::time::interval(exporter.interval);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            exporter.push().await;
        }
    });
}

/// Exports the last values.
pub(super) async fn finish(limit: Duration) {
    if let Some(exporter) = EXPORTER.get()
        && tokio::time::timeout(limit, exporter.push()).await.is_err()
    {
        last::not_exported(Signal::Metrics);
    }
}

impl MetricsExporter {
    /// A failure is logged by the client. It is not repeated: the next export has all values.
    async fn push(&self) {
        let Some(watched) = self.watched.get() else { return };
        let mut exported = self.exported.lock().await;
        // Before the values: an exemplar is rather sent twice than never.
        let now = SystemTime::now();
        let times = ExportTimes { began: self.began, exported: *exported, now };
        let request = request(&read(watched), &self.resource, &times);
        // The error is logged.
        if self.send(request.encode_to_vec().into()).await.is_ok() {
            *exported = now;
        }
    }

    async fn send(&self, body: Bytes) -> Result<(), HttpError> {
        let mut request = Request::new(body);
        *request.headers_mut() = self.headers.clone();
        self.client.send_bytes(request).await.map(drop)
    }
}
