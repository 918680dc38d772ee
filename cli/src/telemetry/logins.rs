//! The standard variables that can hold a login of the OpenTelemetry collector: [`HEADERS`], [`URLS`].

/// Headers of every request.
pub(crate) const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];

/// The URL: of traces, or of the collector, to which the path of the signal is added.
pub(crate) const URLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
