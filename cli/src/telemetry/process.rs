//! Metrics of the process, under the names that all Prometheus clients use: [`ProcessMetrics`].

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads the metrics of this process at each scrape. They exist on Linux only.
#[derive(Debug)]
pub(super) struct ProcessMetrics;

impl Collector for ProcessMetrics {
    #[cfg(target_os = "linux")]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use procfs::WithCurrentSystemInfo as _;
        use procfs::process::{LimitValue, Process};

        let Ok(process) = Process::myself() else { return Ok(()) };
        let Ok(stat) = process.stat() else { return Ok(()) };
        #[allow(clippy::cast_precision_loss, reason = "these values are far below 2^53")]
        let ticks = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let cpu = ConstCounter::new(ticks(stat.utime + stat.stime));
        encode(&mut encoder, "cpu_seconds", "CPU time of the process, user and system, in seconds.", &cpu)?;
        if let Ok(booted) = procfs::boot_time_secs() {
            #[allow(clippy::cast_precision_loss, reason = "these values are far below 2^53")]
            let started = booted as f64 + ticks(stat.starttime);
            let help = "When the process started, in seconds since 1970.";
            encode(&mut encoder, "start_time_seconds", help, &ConstGauge::new(started))?;
        }
        let open_files = process.fd_count().ok().map(|count| count as u64);
        let most_files = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        });
        for (name, help, value) in [
            ("resident_memory_bytes", "Resident memory of the process.", Some(stat.rss_bytes().get())),
            ("virtual_memory_bytes", "Virtual memory of the process.", Some(stat.vsize)),
            ("threads", "Threads of the process.", u64::try_from(stat.num_threads).ok()),
            ("open_fds", "Open file descriptors.", open_files),
            ("max_fds", "File descriptors that may be open.", most_files),
        ] {
            if let Some(value) = value {
                let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                encode(&mut encoder, name, help, &value)?;
            }
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn encode(&self, _: DescriptorEncoder<'_>) -> fmt::Result {
        Ok(())
    }
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there are no metrics"))]
fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
