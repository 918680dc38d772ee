//! Counts the dead letters, and finds the age of the oldest where reading them changes nothing: [`letters`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use onceward::{Error, Scope};

use super::letter::ReadLetter;
use super::reader::OpenLetters;
use crate::config::Config;
use crate::registry::{self, DeadLetterStatus, OpenStore};

/// The most letters that are looked at.
const MOST: u64 = 10_000;

/// The dead letters of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands) struct LettersFound {
    /// Where they are, and how many, also those of other scopes.
    pub(in crate::commands) status: DeadLetterStatus,
    /// How long ago the first message died; `None` where it is unknown.
    pub(in crate::commands) oldest: Option<Duration>,
}

/// Counts the dead letters; `None` without a destination for them. In a file or topic those that are done with are left out, unless
/// reading them takes longer than `limit` or there are more than [`MOST`]: then the number is that of the destination.
///
/// # Errors
/// [`Error`] if the destination cannot be read.
pub(in crate::commands) async fn letters(
    config: &Config,
    scope: &Scope,
    store: &OpenStore,
    limit: Duration,
) -> Result<Option<LettersFound>, Error> {
    let Some(status) = registry::dead_letter_status(config).await? else { return Ok(None) };
    let mut found = LettersFound { status, oldest: None };
    if found.status.letters != Some(0)
        && let Ok(Some(LetterDepth { letters, oldest })) =
            tokio::time::timeout(limit, depth(config, scope, store)).await
    {
        (found.status.letters, found.oldest) = (Some(letters), oldest);
    }
    Ok(Some(found))
}

/// The open letters of a file or topic.
#[derive(Clone, Copy, Debug, Default)]
struct LetterDepth {
    /// At most [`MOST`] are counted.
    letters: u64,
    oldest: Option<Duration>,
}

/// Reads the letters of a file or topic, which does not change anything about them. `None` elsewhere, where there are more than
/// [`MOST`], and if they cannot be read.
async fn depth(config: &Config, scope: &Scope, store: &OpenStore) -> Option<LetterDepth> {
    let audit = Arc::clone(store.audit.as_ref()?);
    if !config.source.plugin().reads_letters_freely() {
        return None;
    }
    let opened = registry::open_letters(config, scope, store.checkpoints.clone(), None).await;
    let failed = |error: Error| tracing::debug!(%error, "dead letters not read");
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
