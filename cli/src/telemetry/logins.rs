//! The standard variables that can hold a login of the OpenTelemetry collector: [`HEADERS`], [`URLS`].

/// Headers of every request.
pub(crate) const HEADERS: [&str; 4] = [
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
];

/// The URL: of a signal, or of the collector, to which the path of the signal is added.
pub(crate) const URLS: [&str; 4] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
