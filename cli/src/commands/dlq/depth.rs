//! Counts the open dead letters and finds the age of the oldest, where looking costs nothing: [`LetterDepth`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use onceward::Scope;

use super::letter::ReadLetter;
use super::reader::OpenLetters;
use crate::config::Config;
use crate::registry::{self, OpenStore};

/// The most letters that are looked at.
const MOST: u64 = 10_000;

/// The open letters of a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::commands) struct LetterDepth {
    /// Their number, also those of other scopes; at most [`MOST`] are counted.
    pub(in crate::commands) letters: u64,
    /// How long ago the first message died.
    pub(in crate::commands) oldest: Option<Duration>,
}

/// Reads the letters of a file or topic, which does not change anything about them. `None` elsewhere, where there are more than
/// [`MOST`], and if they cannot be read: then only their destination's own number is known.
pub(in crate::commands) async fn depth(
    config: &Config,
    scope: &Scope,
    store: &OpenStore,
) -> Option<LetterDepth> {
    let audit = Arc::clone(store.audit.as_ref()?);
    if !config.source.plugin().reads_letters_freely() {
        return None;
    }
    let opened = registry::open_letters(config, scope, store.checkpoints.clone(), None).await;
    let failed = |error: onceward::Error| tracing::debug!(%error, "dead letters not read");
    let (from, _) = opened.map_err(failed).ok()?.ends.split();
    let mut reader = OpenLetters::new(from, audit, scope.clone());
    let (mut depth, now) = (LetterDepth::default(), SystemTime::now());
    let complete = loop {
        match reader.next().await {
            Ok(None) => break Ok(true),
            Ok(Some(_)) if depth.letters >= MOST => break Ok(false),
            Err(error) => break Err(error),
            Ok(Some(batch)) => {
                depth.letters += batch.len() as u64;
                let letters = batch.iter().filter_map(|delivery| ReadLetter::of(&delivery.message, scope));
                depth.oldest = depth.oldest.max(letters.filter_map(|letter| letter.age(now)).max());
            }
        }
    };
    let closed = reader.close().await;
    let is_complete = complete.and_then(|complete| closed.map(|()| complete));
    is_complete.map_err(failed).ok()?.then_some(depth)
}
