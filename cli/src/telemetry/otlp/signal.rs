//! Signals of OpenTelemetry and their standard variables: [`Signal`].

use std::fmt;

/// One of the three that a collector takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    pub(super) const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }

    /// What it consists of.
    pub(super) const fn things(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Metrics => "metrics",
            Self::Logs => "log lines",
        }
    }

    /// What becomes of those that the collector did not take.
    pub(super) const fn after_failure(self) -> &'static str {
        match self {
            Self::Traces | Self::Logs => "the exporter may send them again",
            Self::Metrics => "the next export has the sums",
        }
    }

    /// The variables of the exporter for `what`, such as `ENDPOINT`: that of the signal, then that of all signals.
    pub(super) fn variables(self, what: &str) -> [String; 2] {
        let own = self.name().to_ascii_uppercase();
        [format!("OTEL_EXPORTER_OTLP_{own}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
    }

    /// The variable that names the exporters of the signal.
    pub(super) fn exporters(self) -> String {
        format!("OTEL_{}_EXPORTER", self.name().to_ascii_uppercase())
    }
}

/// The name in paths and sentences.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logins::{HEADERS, URLS};

    #[test]
    fn variables_that_can_hold_a_login_are_known_as_such() {
        for signal in Signal::ALL {
            assert!(signal.variables("HEADERS").iter().all(|name| HEADERS.contains(&&**name)), "{signal}");
            assert!(signal.variables("ENDPOINT").iter().all(|name| URLS.contains(&&**name)), "{signal}");
        }
    }
}
