//! What librdkafka logs, as events of this process's log: [`Traced`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel as Level};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

/// How often lines of one facility and one text, apart from numbers, are written.
const REPEAT: Duration = Duration::from_secs(30);
/// So many different texts are remembered.
const MOST: usize = 256;

/// Makes the client log its warnings. By default it asks the `log` crate, which has no listener here. A level that was set
/// higher is kept.
pub fn level(client: &mut ClientConfig) {
    if (client.log_level as i32) < (Level::Info as i32) {
        client.set_log_level(Level::Info);
    }
}

/// A context that hands the client's lines on. Lost connections are no warnings: the client comes back by itself, and the
/// source's health and whoever waits for it say so. Repeated warnings are written once in a while.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traced;

/// When lines were written last, by facility and text, and how many were left out since.
static WRITTEN: Mutex<Option<HashMap<String, (Instant, u64)>>> = Mutex::new(None);

/// How many lines like this one were left out before; `None` if this one is to be left out as well.
fn due(facility: &str, line: &str, now: Instant) -> Option<u64> {
    let text: String = line.chars().filter(|letter| !letter.is_ascii_digit()).take(160).collect();
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    let written = written.get_or_insert_default();
    if written.len() >= MOST {
        written.clear();
    }
    match written.entry(format!("{facility} {text}")) {
        Entry::Vacant(new) => {
            new.insert((now, 0));
            Some(0)
        }
        Entry::Occupied(mut before) => {
            let (at, left_out) = before.get_mut();
            if now < *at + REPEAT {
                *left_out += 1;
                return None;
            }
            *at = now;
            Some(std::mem::take(left_out))
        }
    }
}

/// How much a line matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Error,
    Warning,
    Noise,
}

fn weight(level: Level, facility: &str) -> Weight {
    match (level, facility) {
        // A property that is of no use for this kind of client; a connection that was lost, or could not be made; all of them.
        (_, "CONFWARN" | "FAIL" | "ERROR" | "REQTMOUT" | "SASLMECHS" | "GETSUBSCRIPTIONS" | "GETPID") => {
            Weight::Noise
        }
        (Level::Emerg | Level::Alert | Level::Critical, _) => Weight::Error,
        (Level::Error | Level::Warning, _) => Weight::Warning,
        (Level::Notice | Level::Info | Level::Debug, _) => Weight::Noise,
    }
}

impl ClientContext for Traced {
    fn log(&self, level: Level, facility: &str, line: &str) {
        let weight = weight(level, facility);
        if weight == Weight::Noise {
            tracing::debug!(facility, "{line}");
            return;
        }
        let Some(left_out) = due(facility, line, Instant::now()) else { return };
        match weight {
            Weight::Error => tracing::error!(facility, left_out, "the Kafka client says: {line}"),
            _ => tracing::warn!(facility, left_out, "the Kafka client says: {line}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
    }
}

impl ConsumerContext for Traced {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_again_is_left_out_for_a_while_whatever_its_numbers() {
        let began = Instant::now();
        let at = |seconds, line: &str| due("TEST", line, began + Duration::from_secs(seconds));
        assert_eq!(at(0, "offset 12 reset"), Some(0));
        assert_eq!(at(1, "offset 13 reset"), None);
        assert_eq!(at(2, "offset 14 reset"), None);
        assert_eq!(at(3, "session timed out"), Some(0));
        assert_eq!(at(31, "offset 15 reset"), Some(2));
        assert_eq!(at(32, "offset 16 reset"), None);
    }

    #[test]
    fn warnings_are_warnings_and_lost_connections_are_not() {
        assert_eq!(weight(Level::Warning, "OFFSET"), Weight::Warning);
        assert_eq!(weight(Level::Error, "FAIL"), Weight::Noise);
        assert_eq!(weight(Level::Critical, "FATAL"), Weight::Error);
        assert_eq!(weight(Level::Info, "PARTCNT"), Weight::Noise);
    }
}
