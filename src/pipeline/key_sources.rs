//! Counts which source each key was taken from, and warns where a message falls back to a weaker source than configured.

use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;
use crate::extract::KeySource;
use crate::key::{Key, KeyError};
use crate::message::Message;

/// What has been warned of: each once in a run.
#[derive(Debug, Default)]
pub(crate) struct KeyWarnings {
    position: AtomicBool,
    letter_case: AtomicBool,
}

/// True the first time.
fn first(warned: &AtomicBool) -> bool {
    !warned.load(Ordering::Relaxed) && !warned.swap(true, Ordering::Relaxed)
}

impl<R> Context<R> {
    /// The key of `message` from the first source that is present.
    pub(crate) fn key_of(&self, message: &Message) -> Result<Key, KeyError> {
        let found = self.keys.key_and_source(message);
        let index = found.as_ref().map_or(usize::MAX, |(_, index)| *index);
        if index != usize::MAX {
            self.counters.count_key_source(index);
        }
        // The first source is the common case, and there is nothing to warn of.
        if index > 0 {
            self.warn_of_fallback(message, index);
        }
        found.map(|(key, _)| key)
    }

    fn warn_of_fallback(&self, message: &Message, index: usize) {
        let warnings = &self.log.keys;
        let position = self.keys.sources().nth(index) == Some(&KeySource::Position);
        if position && first(&warnings.position) {
            let wanted: Vec<_> = self.keys.sources().take(index).map(ToString::to_string).collect();
            tracing::warn!(
                scope = %self.scope, origin = message.origin(), wanted = wanted.join(", "),
                "a message has none of the wanted keys and is known by its position alone: redeliveries are found, but not \
                 what its producer sends twice; the metric of key sources counts such messages"
            );
        }
        if warnings.letter_case.load(Ordering::Relaxed) {
            return;
        }
        for source in self.keys.sources().take(index) {
            if let Some((wanted, found)) = in_another_case(source, message)
                && first(&warnings.letter_case)
            {
                tracing::warn!(
                    scope = %self.scope, origin = message.origin(), wanted, found,
                    "a message has the header of its key in another letter case, which does not count: name it as it is \
                     sent, in `[key] from`"
                );
            }
        }
    }
}

/// A header that `source` wants and `message` has in another letter case: as wanted, and as found.
fn in_another_case<'a>(source: &'a KeySource, message: &'a Message) -> Option<(&'a str, &'a str)> {
    match source {
        KeySource::Header(wanted) if message.header(wanted).is_none() => {
            let (found, _) = message.headers().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
            Some((wanted, found))
        }
        KeySource::Composite(parts) => parts.iter().find_map(|part| in_another_case(part, message)),
        _ => None,
    }
}
