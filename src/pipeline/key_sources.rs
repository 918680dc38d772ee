//! Warnings about messages that are keyed by a weaker source than configured: [`KeyWarnings`].

use std::sync::atomic::{AtomicBool, Ordering};

use crate::extract::{KeyExtractor, KeySource};
use crate::key::Scope;
use crate::message::Message;

/// The warnings that were logged: each once in a run.
#[derive(Debug, Default)]
pub(crate) struct KeyWarnings {
    position: AtomicBool,
    letter_case: AtomicBool,
}

/// True the first time.
fn first(warned: &AtomicBool) -> bool {
    !warned.load(Ordering::Relaxed) && !warned.swap(true, Ordering::Relaxed)
}

impl KeyWarnings {
    /// Warns, once per run, that `message` has none of the first `index` sources of `keys`, and was keyed by a weaker one.
    pub(crate) fn warn_of_fallback(
        &self,
        scope: &Scope,
        keys: &KeyExtractor,
        message: &Message,
        index: usize,
    ) {
        let position = keys.sources().nth(index) == Some(&KeySource::Position);
        if position && first(&self.position) {
            let wanted: Vec<_> = keys.sources().take(index).map(ToString::to_string).collect();
            tracing::warn!(
                %scope, origin = message.origin(), wanted = wanted.join(", "),
                "message keyed by position: no configured key source is present; redeliveries are recognised, duplicates \
                 sent by the producer are not; see the metric of key sources"
            );
        }
        if self.letter_case.load(Ordering::Relaxed) {
            return;
        }
        for source in keys.sources().take(index) {
            if let Some((wanted, found)) = in_another_case(source, message)
                && first(&self.letter_case)
            {
                tracing::warn!(
                    %scope, origin = message.origin(), wanted, found,
                    "key header ignored: it differs in letter case; name it in `[key] from` as it is sent"
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
