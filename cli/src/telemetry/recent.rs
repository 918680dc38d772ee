//! The last warnings of the log and the last dead letters, in bounded space: [`RecentLines`], [`RecentLetters`].

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use onceward::telemetry::LetterSighting;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::handlers::text::printable;
use crate::output::millis;

/// The most lines, and the most letters, that are kept.
const MOST: usize = 20;

/// The longest text of a line, in bytes.
const LONGEST: usize = 300;

/// The lines of this process.
static LINES: Mutex<VecDeque<RecentLine>> = Mutex::new(VecDeque::new());

/// A warning or an error of the log, without the texts of others: no error of a handler or a server is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecentLine {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) level: String,
    pub(crate) text: String,
}

/// A confirmed dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecentLetter {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// As `dlq list` shows it.
    #[serde(default)]
    pub(crate) id: String,
    /// `redriven`, `resolved` or `purged` by this page.
    #[serde(default)]
    pub(crate) done: Option<String>,
    /// The hash of the key.
    pub(crate) key: Option<String>,
    pub(crate) reason: String,
    /// The queue, topic or file that the message came from.
    pub(crate) origin: Option<String>,
}

/// Keeps the program's own warnings and errors. Fields are left out but for those that never hold a part of a message or a
/// text of another program.
pub(super) struct RecentLines;

/// The fields of a line that are kept.
const FIELDS: [&str; 9] =
    ["code", "key", "origin", "position", "topic", "partition", "attempts", "left_out", "count"];

impl<S: Subscriber> Layer<S> for RecentLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = *metadata.level();
        if level > Level::WARN || !metadata.target().starts_with("onceward") {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let text = printable(format!("{}{}", words.message, words.fields).as_bytes(), LONGEST);
        push(&mut LINES.lock(), RecentLine { at_ms: now_ms(), level: level.to_string(), text });
    }
}

/// The message of an event, and its fields that are kept.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a `String` cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if FIELDS.contains(&name) => write!(self.fields, " {name}={value:?}"),
            _ => Ok(()),
        };
    }
}

/// The last lines, newest first.
pub(super) fn lines() -> Vec<RecentLine> {
    LINES.lock().iter().rev().cloned().collect()
}

/// Keeps the last dead letters of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct RecentLetters(Mutex<VecDeque<RecentLetter>>);

impl RecentLetters {
    /// The last letters, newest first.
    pub(super) fn read(&self) -> Vec<RecentLetter> {
        self.0.lock().iter().rev().cloned().collect()
    }

    /// Adds a letter that is confirmed.
    pub(super) fn add(&self, letter: &LetterSighting<'_>) {
        let letter = RecentLetter {
            at_ms: now_ms(),
            id: letter.id.to_owned(),
            done: None,
            key: letter.key.map(|key| key.to_string()),
            reason: letter.reason.as_str().to_owned(),
            origin: letter.origin.map(|origin| printable(origin.as_bytes(), LONGEST)),
        };
        push(&mut self.0.lock(), letter);
    }

    /// Notes what was done with the letter `id`, if it is still here.
    pub(super) fn note(&self, id: &str, done: &str) {
        for letter in self.0.lock().iter_mut().filter(|letter| letter.id == id) {
            letter.done = Some(done.to_owned());
        }
    }
}

fn push<T>(ring: &mut VecDeque<T>, value: T) {
    if ring.len() >= MOST {
        ring.pop_front();
    }
    ring.push_back(value);
}

pub(super) fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use onceward::Key;
    use onceward::store::Reason;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_last_letters_are_kept_newest_first() {
        let letters = RecentLetters::default();
        for number in 0..50 {
            let key = Some(Key::from_bytes([number; 16]));
            letters.add(&LetterSighting::new(
                &format!("letter-{number}"),
                key,
                Reason::Permanent,
                Some("or\u{1b}ders"),
            ));
        }
        let kept = letters.read();
        assert_eq!((kept.len(), kept[0].key.as_deref()), (MOST, Some("31".repeat(16).as_str())));
        letters.note("letter-49", "purged");
        let done: Vec<_> = letters.read().into_iter().filter_map(|letter| letter.done).collect();
        assert_eq!(done, ["purged"]);
        assert_eq!((&*kept[0].reason, kept[0].origin.as_deref()), ("permanent", Some("or\\u{1b}ders")));
    }

    #[test]
    fn warnings_are_kept_without_the_texts_of_others_and_without_those_of_libraries() {
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(RecentLines));
        let error = "password=hunter2";
        tracing::warn!(target: "onceward::test", error, code = "a-code", attempts = 3, "run failed here");
        tracing::error!(target: "library", "run failed there {error}");
        tracing::info!(target: "onceward::test", "run failed nowhere");
        let ours: Vec<_> = lines().into_iter().filter(|line| line.text.starts_with("run failed")).collect();
        let [line] = &ours[..] else { panic!("not one line: {ours:?}") };
        assert_eq!((&*line.level, &*line.text), ("WARN", "run failed here code=\"a-code\" attempts=3"));
    }
}
