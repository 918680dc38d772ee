//! The text format of OpenMetrics, which Prometheus reads: [`text`].

use std::fmt::{self, Write};
use std::time::UNIX_EPOCH;

use onceward::telemetry::DistributionCounts;

use super::family::{Label, MetricExemplar, MetricFamily, MetricKind, MetricSample, MetricValue};

/// The content type of [`text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// These families in the text format.
pub(super) fn text(families: &[MetricFamily]) -> String {
    let mut out = String::new();
    for family in families {
        // Writing to a `String` cannot fail.
        let _ = write_family(&mut out, family);
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(out: &mut String, family: &MetricFamily) -> fmt::Result {
    let MetricFamily { name, help, kind, samples } = family;
    let (kind, suffix) = match kind {
        MetricKind::Counter => ("counter", "_total"),
        MetricKind::Gauge => ("gauge", ""),
        MetricKind::Histogram => ("histogram", ""),
        MetricKind::Info => ("info", "_info"),
    };
    writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", Escaped(help))?;
    for MetricSample { labels, value } in samples {
        let labels = Labels(labels, None);
        match value {
            MetricValue::Whole(value) => writeln!(out, "{name}{suffix}{labels} {value}")?,
            MetricValue::Real(value) => writeln!(out, "{name}{suffix}{labels} {}", Number(*value))?,
            MetricValue::Distribution(counts, exemplars) => {
                write_distribution(out, name, labels.0, counts, exemplars)?;
            }
        }
    }
    Ok(())
}

fn write_distribution(
    out: &mut String,
    name: &str,
    labels: &[Label],
    counts: &DistributionCounts,
    exemplars: &[MetricExemplar],
) -> fmt::Result {
    let all = Labels(labels, None);
    writeln!(out, "{name}_sum{all} {}\n{name}_count{all} {}", Number(counts.sum), counts.count)?;
    let mut so_far = 0;
    for (bucket, (bound, count)) in counts.buckets.iter().enumerate() {
        so_far += count;
        let bound = if *bound == f64::MAX { f64::INFINITY } else { *bound };
        write!(out, "{name}_bucket{} {so_far}", Labels(labels, Some(bound)))?;
        if let Some(MetricExemplar { value, trace_id, span_id, at, .. }) =
            exemplars.iter().find(|exemplar| exemplar.bucket == bucket)
        {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let value = Number(*value);
            write!(out, " # {{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} {value} {at:.3}")?;
        }
        out.push('\n');
    }
    Ok(())
}

/// Labels in braces, with the upper bound of a bucket behind them; empty without any.
struct Labels<'l>(&'l [Label], Option<f64>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = '{';
        for (name, value) in self.0 {
            write!(f, "{between}{name}=\"{}\"", Escaped(value))?;
            between = ',';
        }
        if let Some(bound) = self.1 {
            write!(f, "{between}le=\"{}\"", Number(bound))?;
            between = ',';
        }
        if between == ',' { f.write_char('}') } else { Ok(()) }
    }
}

/// A number, always with a point or an exponent.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            number => write!(f, "{number:?}"),
        }
    }
}

/// A text with what would end it escaped.
struct Escaped<'t>(&'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            character => f.write_char(character),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onceward::telemetry::{Distribution, Measure};

    use super::super::family::MetricFamilies;
    use super::*;

    #[test]
    fn each_kind_has_its_suffix_and_values_are_escaped() {
        let mut families = MetricFamilies::new("o", vec![("scope", "a\"b\\\n".into())]);
        families.counter("seen", "Seen.", 3);
        families.gauge("now", "Now.", 2);
        families.add(
            "build",
            "It.",
            MetricKind::Info,
            [(vec![("version", "1".into())], MetricValue::Whole(1))],
        );
        families.add("cpu", "C.", MetricKind::Counter, [(Vec::new(), MetricValue::Real(2.0))]);
        families.add("none", "None.", MetricKind::Gauge, []);
        let scope = "scope=\"a\\\"b\\\\\\n\"";
        assert_eq!(
            text(&families.into_families()),
            format!(
                "# HELP o_seen Seen.\n# TYPE o_seen counter\no_seen_total{{{scope}}} 3\n\
                 # HELP o_now Now.\n# TYPE o_now gauge\no_now{{{scope}}} 2\n\
                 # HELP o_build It.\n# TYPE o_build info\no_build_info{{{scope},version=\"1\"}} 1\n\
                 # HELP o_cpu C.\n# TYPE o_cpu counter\no_cpu_total{{{scope}}} 2.0\n# EOF\n"
            )
        );
    }

    #[test]
    fn buckets_add_up_and_the_exemplar_is_at_its_own() {
        let attempts = Distribution::new(Measure::Attempts);
        attempts.add(&[1.0, 1.0, 2.0, 99.0]);
        let exemplar = MetricExemplar {
            bucket: 1,
            value: 2.0,
            trace_id: 0xabc,
            span_id: 0x12,
            at: UNIX_EPOCH + Duration::from_millis(1_500),
        };
        let mut families = MetricFamilies::new("o", Vec::new());
        let value = MetricValue::Distribution(attempts.read(), vec![exemplar]);
        families.add("tries", "Tries.", MetricKind::Histogram, [(Vec::new(), value)]);
        let text = text(&families.into_families());
        assert!(
            text.contains("o_tries_sum 103.0\no_tries_count 4\no_tries_bucket{le=\"1.0\"} 2\n"),
            "{text}"
        );
        let ids = "trace_id=\"00000000000000000000000000000abc\",span_id=\"0000000000000012\"";
        let line = &*format!("o_tries_bucket{{le=\"2.0\"}} 3 # {{{ids}}} 2.0 1.500\n");
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains("o_tries_bucket{le=\"20.0\"} 3\no_tries_bucket{le=\"+Inf\"} 4\n# EOF\n"),
            "{text}"
        );
    }
}
