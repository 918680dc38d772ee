//! Metrics as data points of OTLP: [`request`].

use std::time::{SystemTime, UNIX_EPOCH};

use onceward::telemetry::DistributionCounts;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, exemplar, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ResourceMessage;
use opentelemetry_sdk::Resource;

use crate::telemetry::family::{Label, MetricExemplar, MetricFamily, MetricKind, MetricSample, MetricValue};

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// The times of an export.
pub(super) struct ExportTimes {
    /// The start of all sums.
    pub(super) began: SystemTime,
    /// That of the values of the export before: older exemplars were in it.
    pub(super) exported: SystemTime,
    /// That of the values.
    pub(super) now: SystemTime,
}

/// The request that exports `families`.
pub(super) fn request(
    families: &[MetricFamily],
    resource: &Resource,
    times: &ExportTimes,
) -> ExportMetricsServiceRequest {
    let attributes = resource.iter().map(|(key, value)| KeyValue {
        key: key.to_string(),
        value: Some(value.clone().into()),
        ..KeyValue::default()
    });
    let resource = ResourceMessage { attributes: attributes.collect(), ..ResourceMessage::default() };
    let times = Times { began: nanos(times.began), exported: nanos(times.exported), now: nanos(times.now) };
    let metrics = families.iter().map(|family| metric(family, &times)).collect();
    let scope = InstrumentationScope {
        name: "onceward".to_owned(),
        version: onceward::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let resource_metrics =
        vec![ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

/// In nanoseconds since 1970.
struct Times {
    began: u64,
    exported: u64,
    now: u64,
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The name is that of the text format, with its suffix, so that dashboards and rules fit both.
fn metric(family: &MetricFamily, times: &Times) -> Metric {
    let numbers = || family.samples.iter().filter_map(|sample| number(sample, times)).collect();
    let (suffix, data) = match family.kind {
        MetricKind::Counter => {
            let sum = Sum { data_points: numbers(), aggregation_temporality: CUMULATIVE, is_monotonic: true };
            ("_total", Data::Sum(sum))
        }
        MetricKind::Gauge => ("", Data::Gauge(Gauge { data_points: numbers() })),
        MetricKind::Info => ("_info", Data::Gauge(Gauge { data_points: numbers() })),
        MetricKind::Histogram => {
            let points = family.samples.iter().filter_map(|sample| histogram(sample, times));
            let data_points = points.collect();
            ("", Data::Histogram(Histogram { data_points, aggregation_temporality: CUMULATIVE }))
        }
    };
    Metric {
        name: format!("{}{suffix}", family.name),
        description: family.help.to_owned(),
        unit: unit(&family.name).to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// The unit in UCUM, by the name's last word.
fn unit(name: &str) -> &'static str {
    match name.rsplit_once('_') {
        Some((_, "seconds")) => "s",
        Some((_, "bytes")) => "By",
        _ => "",
    }
}

fn attributes(labels: &[Label]) -> Vec<KeyValue> {
    let attribute = |(name, value): &Label| KeyValue {
        key: (*name).to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.clone().into_owned())) }),
        ..KeyValue::default()
    };
    labels.iter().map(attribute).collect()
}

fn number(sample: &MetricSample, times: &Times) -> Option<NumberDataPoint> {
    let value = match sample.value {
        MetricValue::Whole(value) => {
            number_data_point::Value::AsInt(i64::try_from(value).unwrap_or(i64::MAX))
        }
        MetricValue::Real(value) => number_data_point::Value::AsDouble(value),
        MetricValue::Distribution(..) => return None,
    };
    Some(NumberDataPoint {
        attributes: attributes(&sample.labels),
        start_time_unix_nano: times.began,
        time_unix_nano: times.now,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

fn histogram(sample: &MetricSample, times: &Times) -> Option<HistogramDataPoint> {
    let MetricValue::Distribution(DistributionCounts { sum, count, buckets, .. }, exemplars) = &sample.value
    else {
        return None;
    };
    // The last one has no bound.
    let bounds = buckets.len().saturating_sub(1);
    Some(HistogramDataPoint {
        attributes: attributes(&sample.labels),
        start_time_unix_nano: times.began,
        time_unix_nano: times.now,
        count: *count,
        sum: Some(*sum),
        bucket_counts: buckets.iter().map(|(_, count)| *count).collect(),
        explicit_bounds: buckets[..bounds].iter().map(|(bound, _)| *bound).collect(),
        exemplars: exemplars
            .iter()
            .map(exemplar_of)
            .filter(|exemplar| exemplar.time_unix_nano >= times.exported)
            .collect(),
        ..HistogramDataPoint::default()
    })
}

fn exemplar_of(exemplar: &MetricExemplar) -> Exemplar {
    Exemplar {
        time_unix_nano: nanos(exemplar.at),
        trace_id: exemplar.trace_id.to_be_bytes().to_vec(),
        span_id: exemplar.span_id.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
        ..Exemplar::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onceward::telemetry::{Distribution, Measure};

    use super::*;

    #[test]
    fn an_exemplar_is_exported_once() {
        let second = |second| UNIX_EPOCH + Duration::from_secs(second);
        let exemplar = |bucket, at| MetricExemplar { bucket, value: 1.0, trace_id: 1, span_id: 1, at };
        let values = Distribution::new(Measure::DuplicateAge).read();
        let exemplars = vec![exemplar(0, second(10)), exemplar(1, second(20))];
        let sample = MetricSample { labels: Vec::new(), value: MetricValue::Distribution(values, exemplars) };
        let exported = |exported| {
            let times = Times { began: 0, exported: nanos(second(exported)), now: nanos(second(30)) };
            histogram(&sample, &times).map(|point| point.exemplars.len())
        };
        assert_eq!([0, 20, 21].map(exported), [Some(2), Some(1), Some(0)]);
    }
}
