//! Rate limit of the log: an outage must not fill the disk with one message.
//!
//! A kind of line is a callsite together with the message without its digits. In any minute [`LINES`] lines of a kind are
//! logged; the others are counted and summarised every [`PAUSE`], so that a kind has at most twenty lines a minute. Audit
//! lines, the output of worker processes, and the levels `debug` and `trace` are not limited.

use std::collections::{HashMap, VecDeque};
use std::fmt::{Debug, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::audit::AUDIT;

/// The most lines of a kind in a minute.
const LINES: usize = 18;

const MINUTE: Duration = Duration::from_secs(60);

/// The interval between summaries.
const PAUSE: Duration = Duration::from_secs(30);

/// The most messages of one callsite that count as kinds of their own; all further ones are one kind.
const SENTENCES: usize = 8;

/// The most characters of a message in a summary.
const SHOWN_CHARACTERS: usize = 160;

/// The target of the summaries.
const SUMMARY: &str = "onceward::log";

/// The target of lines that worker processes write.
const WORKERS: &str = "onceward_cli::handlers::worker";

/// A layer that limits lines, and the writer of its summaries.
pub(super) fn limit() -> (Limit, Summaries) {
    let kinds = Arc::new(Mutex::new(Kinds::default()));
    (Limit(Arc::clone(&kinds)), Summaries(kinds))
}

/// Passes the first lines of a kind in each minute.
pub(super) struct Limit(Arc<Mutex<Kinds>>);

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let level = *metadata.level();
        let is_free = |target: &str| {
            target == AUDIT || target == SUMMARY || (level == Level::INFO && target.starts_with(WORKERS))
        };
        if level > Level::INFO || is_free(metadata.target()) {
            return true;
        }
        let mut sentence = Sentence(String::new());
        event.record(&mut sentence);
        let mut kinds = self.0.lock();
        kinds.admit(metadata.callsite(), level, &sentence.0, Instant::now())
    }
}

/// Logs how many lines of each kind were suppressed.
#[derive(Clone)]
pub(super) struct Summaries(Arc<Mutex<Kinds>>);

impl Summaries {
    /// Starts a background task that runs until the runtime ends; without a runtime there are no summaries.
    pub(super) fn start(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let summaries = self.clone();
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(PAUSE).await;
                summaries.log();
            }
        });
    }

    /// Logs the lines suppressed since the last summary.
    pub(super) fn log(&self) {
        let left_out = self.0.lock().left_out(Instant::now());
        left_out.iter().for_each(LeftOut::log);
    }
}

/// The message of an event.
struct Sentence(String);

impl Visit for Sentence {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a `String` cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[derive(Default)]
struct Kinds {
    kinds: HashMap<(Identifier, u64), Kind>,
    sentences: HashMap<Identifier, usize>,
}

struct Kind {
    level: Level,
    sentence: String,
    /// The times at which lines passed within the last minute.
    passed: VecDeque<Instant>,
    left_out: u64,
}

/// The suppressed lines of a kind.
#[derive(Debug, PartialEq, Eq)]
struct LeftOut {
    level: Level,
    sentence: String,
    count: u64,
}

impl Kinds {
    fn admit(&mut self, place: Identifier, level: Level, sentence: &str, now: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        sentence.chars().filter(|c| !c.is_ascii_digit()).for_each(|c| c.hash(&mut hasher));
        let mut which = hasher.finish();
        if !self.kinds.contains_key(&(place.clone(), which)) {
            let sentences = self.sentences.entry(place.clone()).or_default();
            if *sentences >= SENTENCES {
                which = 0;
            } else {
                *sentences += 1;
            }
        }
        let kind = self.kinds.entry((place, which)).or_insert_with(|| Kind {
            level,
            sentence: sentence.chars().take(SHOWN_CHARACTERS).collect(),
            passed: VecDeque::new(),
            left_out: 0,
        });
        while kind.passed.front().is_some_and(|first| now.saturating_duration_since(*first) >= MINUTE) {
            kind.passed.pop_front();
        }
        let passes = kind.passed.len() < LINES;
        if passes {
            kind.passed.push_back(now);
        } else {
            kind.left_out += 1;
        }
        passes
    }

    /// The lines suppressed since the last call.
    fn left_out(&mut self, now: Instant) -> Vec<LeftOut> {
        let mut left_out = Vec::new();
        for kind in self.kinds.values_mut().filter(|kind| kind.left_out > 0) {
            let count = std::mem::take(&mut kind.left_out);
            left_out.push(LeftOut { level: kind.level, sentence: kind.sentence.clone(), count });
        }
        let is_over = |kind: &Kind| {
            kind.passed.back().is_none_or(|last| now.saturating_duration_since(*last) >= MINUTE)
        };
        self.kinds.retain(|(place, _), kind| {
            let goes = is_over(kind);
            if goes && let Some(sentences) = self.sentences.get_mut(place) {
                *sentences = sentences.saturating_sub(1);
            }
            !goes
        });
        left_out
    }
}

impl LeftOut {
    fn log(&self) {
        let (like, suppressed) = (self.sentence.as_str(), self.count);
        macro_rules! at {
            ($level:expr) => {
                tracing::event!(target: SUMMARY, $level, suppressed, like, "similar log lines suppressed")
            };
        }
        match self.level {
            Level::ERROR => at!(Level::ERROR),
            Level::WARN => at!(Level::WARN),
            _ => at!(Level::INFO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use parking_lot::MutexGuard;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock()
        }

        fn count(&self, part: &str) -> usize {
            String::from_utf8_lossy(&self.lock()).lines().filter(|line| line.contains(part)).count()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn flooded(flood: impl FnOnce()) -> (Lines, Vec<LeftOut>) {
        let lines = Lines::default();
        let writer = lines.clone();
        let (limit, Summaries(kinds)) = limit();
        let logger = tracing_subscriber::registry()
            .with(limit)
            .with(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone()));
        tracing::subscriber::with_default(logger, || {
            flood();
            let left_out = kinds.lock().left_out(Instant::now());
            left_out.iter().for_each(LeftOut::log);
            (lines.clone(), left_out)
        })
    }

    #[test]
    fn an_outage_has_few_lines_of_each_kind_and_says_how_many_there_were() {
        let (lines, mut left_out) = flooded(|| {
            for number in 0..6_000 {
                tracing::warn!(key = number, "a dead letter was not confirmed");
                tracing::error!(key = number, "a completion is refused");
                // A place that logs the messages of a library.
                tracing::warn!("{}", format!("connection {number} refused"));
            }
        });
        for part in ["a dead letter was not confirmed", "a completion is refused", "refused\n"] {
            assert!(lines.count(part.trim_end()) <= 2 * 20, "{part}: {}", lines.count(part));
        }
        assert_eq!(lines.count("suppressed"), 3);
        left_out.sort_by(|a, b| a.sentence.cmp(&b.sentence));
        let counts: Vec<_> = left_out.iter().map(|left| (left.level, left.count)).collect();
        let rest = 6_000 - LINES as u64;
        assert_eq!(counts, [(Level::ERROR, rest), (Level::WARN, rest), (Level::WARN, rest)]);
        assert!(left_out.iter().any(|left| left.sentence == "connection 0 refused"), "{left_out:?}");
        assert!(lines.count(&format!("suppressed={rest}")) == 3);
    }

    #[test]
    fn different_sentences_of_one_place_all_pass_until_there_are_too_many() {
        let (lines, left_out) = flooded(|| {
            for word in ["ttl", "lease", "retention", "replicas"] {
                tracing::warn!("{}", format!("{word} is short"));
            }
            for letters in 0..2_000_u32 {
                let word: String =
                    (0..8).map(|bit| if letters >> bit & 1 == 1 { 'a' } else { 'b' }).collect();
                tracing::warn!("{}", format!("unlike: {word}{}", "z".repeat(letters as usize / 256)));
            }
        });
        assert_eq!(lines.count("is short"), 4);
        assert!(lines.count("unlike") < 20 * (SENTENCES + 1), "{}", lines.count("unlike"));
        assert!(left_out.iter().map(|left| left.count).sum::<u64>() > 1_000, "{left_out:?}");
    }

    #[test]
    fn audits_workers_and_debug_lines_are_not_limited() {
        let (lines, left_out) = flooded(|| {
            for number in 0..100 {
                tracing::info!(target: AUDIT, number, "an audit");
                tracing::info!(target: "onceward_cli::handlers::worker::process", number, "a worker wrote");
                tracing::debug!(number, "a detail");
            }
        });
        let counts = ["an audit", "a worker wrote", "a detail"].map(|part| lines.count(part));
        assert_eq!((counts, left_out), ([100, 100, 100], vec![]));
    }

    #[test]
    fn a_kind_passes_again_after_a_minute() {
        let mut kinds = Kinds::default();
        let start = Instant::now();
        let callsite = || {
            // Any place in the code will do.
            tracing::callsite::Identifier(&PLACE)
        };
        let admitted = |kinds: &mut Kinds, at: Duration| {
            (0..100).filter(|_| kinds.admit(callsite(), Level::WARN, "away", start + at)).count()
        };
        assert_eq!(admitted(&mut kinds, Duration::ZERO), LINES);
        assert_eq!(admitted(&mut kinds, Duration::from_secs(59)), 0);
        assert_eq!(admitted(&mut kinds, MINUTE), LINES);
        let left_out = kinds.left_out(start + MINUTE);
        assert_eq!(left_out.iter().map(|left| left.count).sum::<u64>(), 300 - 2 * LINES as u64);
        assert!(kinds.left_out(start + 3 * MINUTE).is_empty() && kinds.kinds.is_empty());
        assert_eq!(kinds.sentences.values().sum::<usize>(), 0);
    }

    struct Place;

    static PLACE: Place = Place;

    impl tracing::callsite::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("only its identity is used")
        }
    }
}
