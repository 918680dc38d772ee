//! Metrics of the process, under the names that all Prometheus clients use: [`read`].

use super::family::MetricFamily;

/// The metrics of this process. They exist on Linux only.
#[cfg(target_os = "linux")]
pub(super) fn read() -> Vec<MetricFamily> {
    use procfs::WithCurrentSystemInfo as _;
    use procfs::process::{LimitValue, Process};

    use super::family::{MetricFamilies, MetricKind, MetricValue};

    let Ok(process) = Process::myself() else { return Vec::new() };
    let Ok(stat) = process.stat() else { return Vec::new() };
    let mut families = MetricFamilies::new("process", Vec::new());
    #[allow(clippy::cast_precision_loss, reason = "these values are far below 2^53")]
    let ticks = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
    let real = |value| [(Vec::new(), MetricValue::Real(value))];
    families.add(
        "cpu_seconds",
        "CPU time of the process, user and system, in seconds.",
        MetricKind::Counter,
        real(ticks(stat.utime + stat.stime)),
    );
    if let Ok(booted) = procfs::boot_time_secs() {
        #[allow(clippy::cast_precision_loss, reason = "these values are far below 2^53")]
        let started = booted as f64 + ticks(stat.starttime);
        let help = "When the process started, in seconds since 1970.";
        families.add("start_time_seconds", help, MetricKind::Gauge, real(started));
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
            families.gauge(name, help, value);
        }
    }
    families.into_families()
}

/// Always empty.
#[cfg(not(target_os = "linux"))]
pub(super) fn read() -> Vec<MetricFamily> {
    Vec::new()
}
