//! Forwards librdkafka's log lines to `tracing`: [`TracingContext`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel as Level};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

/// How often lines of one facility that differ in numbers only are written.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);
/// How many different lines are remembered.
const REMEMBERED_LINES: usize = 256;

/// Makes the client log its warnings. By default the wrapper asks the `log` crate, which has no listener here. A more verbose
/// level is kept.
pub fn enable_warnings(client: &mut ClientConfig) {
    if (client.log_level as i32) < (Level::Info as i32) {
        client.set_log_level(Level::Info);
    }
}

/// A client context that writes log lines to `tracing`, in fields: they may quote the broker. Repeated warnings are rate-limited. Lost connections are debug lines:
/// the client reconnects by itself, and the source's health reports the outage.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingContext;

/// The time each line was last written, by facility and text, and the number suppressed since.
static WRITTEN: Mutex<Option<HashMap<String, (Instant, u64)>>> = Mutex::new(None);

/// Returns the number of suppressed lines like this one; `None` if this one is suppressed as well.
fn take_suppressed(facility: &str, line: &str, now: Instant) -> Option<u64> {
    let text: String = line.chars().filter(|letter| !letter.is_ascii_digit()).take(160).collect();
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    let written = written.get_or_insert_default();
    if written.len() >= REMEMBERED_LINES {
        written.clear();
    }
    match written.entry(format!("{facility} {text}")) {
        Entry::Vacant(new) => {
            new.insert((now, 0));
            Some(0)
        }
        Entry::Occupied(mut before) => {
            let (at, suppressed) = before.get_mut();
            if now < *at + REPEAT_INTERVAL {
                *suppressed += 1;
                return None;
            }
            *at = now;
            Some(std::mem::take(suppressed))
        }
    }
}

/// The severity of a line for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogSeverity {
    Error,
    Warning,
    Debug,
}

fn severity(level: Level, facility: &str) -> LogSeverity {
    match (level, facility) {
        // An unused property; a lost or failed connection; all brokers down.
        (_, "CONFWARN" | "FAIL" | "ERROR" | "REQTMOUT" | "SASLMECHS" | "GETSUBSCRIPTIONS" | "GETPID") => {
            LogSeverity::Debug
        }
        (Level::Emerg | Level::Alert | Level::Critical, _) => LogSeverity::Error,
        (Level::Error | Level::Warning, _) => LogSeverity::Warning,
        (Level::Notice | Level::Info | Level::Debug, _) => LogSeverity::Debug,
    }
}

impl ClientContext for TracingContext {
    fn log(&self, level: Level, facility: &str, line: &str) {
        let severity = severity(level, facility);
        if severity == LogSeverity::Debug {
            tracing::debug!(facility, line, "Kafka client: detail");
            return;
        }
        let Some(suppressed) = take_suppressed(facility, line, Instant::now()) else { return };
        match severity {
            LogSeverity::Error => tracing::error!(facility, line, suppressed, "Kafka client: error"),
            _ => tracing::warn!(facility, line, suppressed, "Kafka client: warning"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client: error event");
    }
}

impl ConsumerContext for TracingContext {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// The fields of events, by name.
    #[derive(Clone, Default)]
    struct Fields(Arc<Mutex<Vec<(String, String)>>>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push((field.name().to_owned(), format!("{value:?}")));
        }
    }

    impl Subscriber for Fields {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_text_of_the_client_is_a_field_and_no_part_of_the_message() {
        let fields = Fields::default();
        let _guard = tracing::subscriber::set_default(fields.clone());
        TracingContext.log(Level::Warning, "OFFSET", "said by a broker");
        TracingContext.log(Level::Critical, "FATAL", "said by another broker");
        TracingContext.error(KafkaError::Canceled, "said by a third");
        let fields = fields.0.lock().unwrap();
        let of = |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).collect::<Vec<_>>();
        assert_eq!(of("line").len(), 2, "{fields:?}");
        assert!(!of("message").iter().any(|(_, text)| text.contains("said")), "{fields:?}");
    }

    #[test]
    fn a_repeated_line_is_suppressed_for_a_while_whatever_its_numbers() {
        let began = Instant::now();
        let at = |seconds, line: &str| take_suppressed("TEST", line, began + Duration::from_secs(seconds));
        assert_eq!(at(0, "offset 12 reset"), Some(0));
        assert_eq!(at(1, "offset 13 reset"), None);
        assert_eq!(at(2, "offset 14 reset"), None);
        assert_eq!(at(3, "session timed out"), Some(0));
        assert_eq!(at(31, "offset 15 reset"), Some(2));
        assert_eq!(at(32, "offset 16 reset"), None);
    }

    #[test]
    fn warnings_are_warnings_and_lost_connections_are_debug_lines() {
        assert_eq!(severity(Level::Warning, "OFFSET"), LogSeverity::Warning);
        assert_eq!(severity(Level::Error, "FAIL"), LogSeverity::Debug);
        assert_eq!(severity(Level::Critical, "FATAL"), LogSeverity::Error);
        assert_eq!(severity(Level::Info, "PARTCNT"), LogSeverity::Debug);
    }
}
