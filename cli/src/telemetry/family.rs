//! Metrics as they are at one moment, before they are encoded for anybody: [`MetricFamily`].

use std::borrow::Cow;
use std::time::SystemTime;

use onceward::telemetry::DistributionCounts;

/// Name and value of a label.
pub(super) type Label = (&'static str, Cow<'static, str>);

/// All samples of one name.
#[derive(Clone, Debug)]
pub(super) struct MetricFamily {
    /// In full, without the suffix of its kind.
    pub(super) name: String,
    /// One sentence.
    pub(super) help: &'static str,
    pub(super) kind: MetricKind,
    pub(super) samples: Vec<MetricSample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricKind {
    /// It only grows while the program runs.
    Counter,
    Gauge,
    Histogram,
    /// A fact in the labels; the value is 1.
    Info,
}

/// One value, and what distinguishes it from the others of its name.
#[derive(Clone, Debug)]
pub(super) struct MetricSample {
    pub(super) labels: Vec<Label>,
    pub(super) value: MetricValue,
}

#[derive(Clone, Debug)]
pub(super) enum MetricValue {
    Whole(u64),
    Real(f64),
    Distribution(DistributionCounts, Vec<MetricExemplar>),
}

/// A value that went into a bucket of a distribution, and the trace that it is from.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "only traces give exemplars"))]
pub(super) struct MetricExemplar {
    /// The index of the bucket.
    pub(super) bucket: usize,
    pub(super) value: f64,
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    pub(super) at: SystemTime,
}

/// Gathers families whose names have one prefix, and whose samples have the same first labels.
#[derive(Debug)]
pub(super) struct MetricFamilies {
    prefix: &'static str,
    common: Vec<Label>,
    families: Vec<MetricFamily>,
}

impl MetricFamilies {
    /// `prefix` is without the underscore.
    pub(super) fn new(prefix: &'static str, common: Vec<Label>) -> Self {
        Self { prefix, common, families: Vec::new() }
    }

    pub(super) fn gauge(&mut self, name: &str, help: &'static str, value: u64) {
        self.add(name, help, MetricKind::Gauge, [(Vec::new(), MetricValue::Whole(value))]);
    }

    pub(super) fn counter(&mut self, name: &str, help: &'static str, value: u64) {
        self.add(name, help, MetricKind::Counter, [(Vec::new(), MetricValue::Whole(value))]);
    }

    /// Adds a family, unless it has no samples.
    pub(super) fn add(
        &mut self,
        name: &str,
        help: &'static str,
        kind: MetricKind,
        samples: impl IntoIterator<Item = (Vec<Label>, MetricValue)>,
    ) {
        let samples: Vec<_> = samples
            .into_iter()
            .map(|(own, value)| MetricSample {
                labels: self.common.iter().cloned().chain(own).collect(),
                value,
            })
            .collect();
        if !samples.is_empty() {
            let name = format!("{}_{name}", self.prefix);
            self.families.push(MetricFamily { name, help, kind, samples });
        }
    }

    pub(super) fn into_families(self) -> Vec<MetricFamily> {
        self.families
    }
}
