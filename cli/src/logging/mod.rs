//! Logging to standard error, with a filter, a rate limit and a format, and with escaped control characters.

mod audit;
mod filter;
mod limit;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{LazyLock, OnceLock};

use onceward::telemetry::TRACE_TARGET;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{Directive, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Lookup};
use crate::exit::Failure;
use crate::handlers::text::is_unprintable;
use crate::telemetry;

pub(crate) use audit::AUDIT;

/// Lets the spans of deliveries through, which are no lines.
static SPANS: LazyLock<Directive> = LazyLock::new(|| {
    let directive = format!("{TRACE_TARGET}=info").parse();
    directive.unwrap_or_else(|_| Directive::from(LevelFilter::INFO))
});

/// The summaries of suppressed lines.
static SUMMARIES: OnceLock<limit::Summaries> = OnceLock::new();

/// Starts logging.
///
/// # Errors
/// The filter in the environment is invalid.
pub(crate) fn start(format: LogFormat, env: Lookup<'_>) -> Result<(), Failure> {
    let mut filter = filter::parse(env)?;
    if telemetry::traces_are_on() {
        // The level of the log is not that of traces.
        filter = filter.add_directive(SPANS.clone());
    }
    let (limit, summaries) = limit::limit();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Escaping(format));
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // A line names its message itself.
    let lines = lines.with_filter(filter_fn(|metadata| metadata.target() != TRACE_TARGET));
    let logger = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(|metadata| filter::is_allowed(metadata.target(), *metadata.level())))
        .with(limit)
        .with(lines)
        .with(telemetry::recent_layer())
        .with(telemetry::line_layer())
        .with(telemetry::trace_layer());
    // A second start in one process, as in tests, keeps the first.
    if logger.try_init().is_ok() {
        summaries.start();
        // It is set only here.
        let _ = SUMMARIES.set(summaries);
    }
    Ok(())
}

/// Logs the number of suppressed lines that no summary has reported yet.
pub(crate) fn finish() {
    if let Some(summaries) = SUMMARIES.get() {
        summaries.log();
    }
}

/// Writes each line to standard error, with control characters escaped except for the line end.
#[derive(Clone, Copy)]
struct Escaping(LogFormat);

impl<'a> MakeWriter<'a> for Escaping {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Escaping {
    /// Never fails: a run must not end because the reader of the log has closed the pipe.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(escaped(line, self.0).as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line of the log with its control characters escaped.
fn escaped(line: &[u8], format: LogFormat) -> String {
    let text = String::from_utf8_lossy(line);
    let body = text.strip_suffix('\n').unwrap_or(&text);
    let mut out = String::with_capacity(text.len());
    for character in body.chars() {
        // Writing to a `String` cannot fail.
        let _ = match (is_unprintable(character), format) {
            (false, _) => out.write_char(character),
            (true, LogFormat::Text) => write!(out, "{}", character.escape_default()),
            // The escape of JSON; all of these characters are in the first plane.
            (true, LogFormat::Json) => write!(out, "\\u{:04x}", u32::from(character)),
        };
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_can_neither_forge_a_line_nor_act_on_a_terminal() {
        let line = "INFO key=a\nERROR forged \x1b[2J\u{9b}1m\u{202e}\n".as_bytes();
        assert_eq!(
            escaped(line, LogFormat::Text),
            "INFO key=a\\nERROR forged \\u{1b}[2J\\u{9b}1m\\u{202e}\n"
        );
        let json = escaped("{\"a\":\"\u{9b}\u{7f}ü\"}\n".as_bytes(), LogFormat::Json);
        assert_eq!(json, "{\"a\":\"\\u009b\\u007fü\"}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["a"], "\u{9b}\u{7f}ü");
    }
}
