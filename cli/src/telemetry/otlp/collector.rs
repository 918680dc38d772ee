//! The OpenTelemetry collector of a signal: its address, its login and its time limit: [`Collector`].

use std::time::Duration;

use onceward::adapter::is_local_host;
use reqwest::Url;

use super::client::Client;
use super::signal::Signal;
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};

/// The time limit of a request, unless `OTEL_EXPORTER_OTLP_TIMEOUT` is shorter.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// Where a signal goes. It is resolved here and not by the exporter, whose errors quote the URL with its login.
pub(super) struct Collector {
    signal: Signal,
    /// With the login, which the client sends as Basic authentication.
    url: Url,
    /// The time limit of a request.
    timeout: Duration,
}

impl Collector {
    /// The collector that the environment or the configuration names; `None` if the signal is not exported.
    ///
    /// # Errors
    /// The URL is not usable, or would expose a login; or a variable asks for what this program does not have.
    pub(super) fn find(signal: Signal, config: &Config, env: Lookup<'_>) -> Result<Option<Self>, Failure> {
        let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let first = |what: &str| {
            signal.variables(what).into_iter().find_map(|name| set(&name).map(|value| (name, value)))
        };
        if !is_wanted(signal, set) {
            return Ok(None);
        }
        let of_config = || {
            config.telemetry.otlp.as_ref().map(|url| ("telemetry.otlp".to_owned(), url.expose().to_owned()))
        };
        let Some((name, text)) = first("ENDPOINT").or_else(of_config) else { return Ok(None) };
        let url = Url::parse(text.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(mut url) = url else {
            let what = format!("{name} is not a URL of a collector");
            return Err(refused(signal, &what, "write a URL such as http://127.0.0.1:4318"));
        };
        if exposes_login(&url, first("HEADERS").is_some()) {
            let what = "the collector is on another host and would get a login without TLS";
            return Err(refused(signal, what, "use https, or a collector on this host"));
        }
        for (what, known, asks_for, fix) in UNAVAILABLE {
            if let Some((name, _)) = first(what).filter(|(_, value)| value.trim() != known) {
                return Err(refused(signal, &format!("{name} asks for {asks_for}"), fix));
            }
        }
        let timeout =
            first("TIMEOUT").and_then(|(_, text)| text.trim().parse().ok()).map(Duration::from_millis);
        let timeout = timeout.map_or(REQUEST_TIME, |timeout| timeout.min(REQUEST_TIME));
        // That of the signal is used as it is.
        if !signal.variables("ENDPOINT").starts_with(&[name]) {
            url.set_path(&format!("{}/v1/{signal}", url.path().trim_end_matches('/')));
        }
        Ok(Some(Self { signal, url, timeout }))
    }

    /// The URL without its login.
    pub(super) fn public_url(&self) -> String {
        let mut url = self.url.clone();
        // Both are possible in a URL that has a host.
        let _ = (url.set_username(""), url.set_password(None));
        url.into()
    }

    /// The program's HTTP client.
    ///
    /// # Errors
    /// TLS is not available.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("onceward/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(self.timeout);
        if self.url.scheme() == "http" {
            // Certificates are not used: a system without any must not stop the export.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| {
            let what = format!("the HTTP client cannot be set up ({error})");
            refused(self.signal, &what, "check the system's certificates")
        })?;
        Ok(Client::new(self.signal, client, self.url.clone()))
    }
}

/// What the exporter has only one choice of: the variable, the choice, and what to do about another one.
const UNAVAILABLE: [(&str, &str, &str, &str); 2] = [
    (
        "PROTOCOL",
        "http/protobuf",
        "a protocol that this program does not have",
        "write http/protobuf, and the URL of the collector's HTTP port, often 4318",
    ),
    ("COMPRESSION", "none", "compression, which this program does not have", "write none, or leave it out"),
];

/// True unless the variables turn the signal off. Log lines are on standard error already, so that they are exported only
/// where a variable asks for it.
fn is_wanted(signal: Signal, set: impl Fn(&str) -> Option<String>) -> bool {
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
        return false;
    }
    match set(&signal.exporters()) {
        Some(exporters) => exporters.split(',').any(|exporter| exporter.trim() == "otlp"),
        None => signal != Signal::Logs || set(&signal.variables("ENDPOINT")[0]).is_some(),
    }
}

/// The sentence about a signal that cannot be exported.
pub(super) fn refused(signal: Signal, what: &str, fix: &str) -> Failure {
    Failure::new(Exit::Config, format!("cannot export {signal}: {what}; {fix}"))
}

/// The sentence about values that the exporter's library refuses, without quoting any.
pub(super) fn refused_settings(signal: Signal) -> Failure {
    refused(signal, "the exporter refused its settings", "check the variables OTEL_EXPORTER_OTLP_*")
}

/// True if a login would leave this host without TLS.
fn exposes_login(url: &Url, has_headers: bool) -> bool {
    let has_login = has_headers || !url.username().is_empty() || url.password().is_some();
    has_login && url.scheme() == "http" && !url.host_str().is_some_and(is_local_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leaves_this_host_over_tls_only() {
        for (url, has_headers, exposes) in [
            ("http://collector:4318", false, false),
            ("http://collector:4318", true, true),
            ("http://u:p@collector:4318", false, true),
            ("https://u:p@collector:4318", true, false),
            ("http://u:p@127.0.0.1:4318", true, false),
        ] {
            assert_eq!(exposes_login(&Url::parse(url).unwrap(), has_headers), exposes, "{url} {has_headers}");
        }
    }

    #[test]
    fn variables_of_a_signal_decide_whether_it_is_exported() {
        use Signal::{Logs, Metrics, Traces};
        for (variables, exported) in [
            (&[][..], &[Traces, Metrics][..]),
            (&[("OTEL_METRICS_EXPORTER", "none")], &[Traces]),
            (&[("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "prometheus, otlp")], &[Metrics]),
            (&[("OTEL_METRICS_EXPORTER", "prometheus")], &[Traces]),
            (&[("OTEL_LOGS_EXPORTER", "otlp")], &[Traces, Metrics, Logs]),
            (&[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://h")], &[Traces, Metrics, Logs]),
            (
                &[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://h"), ("OTEL_LOGS_EXPORTER", "none")],
                &[Traces, Metrics],
            ),
            (&[("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_LOGS_EXPORTER", "otlp")], &[]),
        ] {
            let set = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let wanted: Vec<_> = Signal::ALL.into_iter().filter(|signal| is_wanted(*signal, set)).collect();
            assert_eq!(wanted, exported, "{variables:?}");
        }
    }
}
