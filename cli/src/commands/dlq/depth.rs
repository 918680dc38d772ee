//! Counts the dead letters, and finds the age of the oldest where reading them changes nothing: [`letters`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use onceward::store::AuditLog;
use onceward::{Error, Scope};

use super::letter::ReadLetter;
use super::reader::OpenLetters;
use crate::config::Config;
use crate::registry::{self, DeadLetterStatus, OpenStore};

/// The most letters that are looked at.
const MOST: u64 = 10_000;

/// What a number of dead letters says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum LetterCount {
    /// The letters that wait.
    Waiting,
    /// At least so many wait: there are more than [`MOST`].
    AtLeast,
    /// The letters of the destination, also those that are done with: they could not be read.
    Total,
}

/// The dead letters of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands) struct LettersFound {
    /// Where they are, and how many, also those of other scopes.
    pub(in crate::commands) status: DeadLetterStatus,
    pub(in crate::commands) count: LetterCount,
    /// How long ago the first message died; `None` where it is unknown.
    pub(in crate::commands) oldest: Option<Duration>,
}

/// Counts the dead letters; `None` without a destination for them. In a file or topic those that are done with are left out, unless
/// reading them fails or takes longer than `limit`: then the number is that of the destination.
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
    let mut found = LettersFound { status, count: LetterCount::Waiting, oldest: None };
    // Without an audit trail no letter of a file or topic is ever done with.
    let Some(audit) = store.audit.clone().filter(|_| config.source.plugin().reads_letters_freely()) else {
        return Ok(Some(found));
    };
    if found.status.letters != Some(0) {
        match tokio::time::timeout(limit, depth(config, scope, store, audit)).await {
            Ok(Some(LetterDepth { letters, is_complete, oldest })) => {
                (found.status.letters, found.oldest) = (Some(letters), oldest);
                found.count = if is_complete { LetterCount::Waiting } else { LetterCount::AtLeast };
            }
            Ok(None) | Err(_) => found.count = LetterCount::Total,
        }
    }
    Ok(Some(found))
}

/// The open letters of a file or topic.
#[derive(Clone, Copy, Debug, Default)]
struct LetterDepth {
    letters: u64,
    /// False beyond [`MOST`] letters.
    is_complete: bool,
    oldest: Option<Duration>,
}

/// Reads the letters of a file or topic, which does not change anything about them. `None` if they cannot be read.
async fn depth(
    config: &Config,
    scope: &Scope,
    store: &OpenStore,
    audit: Arc<dyn AuditLog>,
) -> Option<LetterDepth> {
    let opened = registry::open_letters_to_read(config, scope, store.checkpoints.clone()).await;
    let failed = |error: Error| tracing::debug!(%error, "dead letters not read");
    let from = opened.map_err(failed).ok()?;
    let mut reader = OpenLetters::new(from, audit, scope.clone());
    let (mut depth, now) = (LetterDepth::default(), SystemTime::now());
    let read = loop {
        match reader.next().await {
            Ok(None) => {
                depth.is_complete = true;
                break Ok(());
            }
            Ok(Some(_)) if depth.letters >= MOST => break Ok(()),
            Err(error) => break Err(error),
            Ok(Some(batch)) => {
                depth.letters += batch.len() as u64;
                let letters = batch.iter().filter_map(|delivery| ReadLetter::of(&delivery.message, scope));
                depth.oldest = depth.oldest.max(letters.filter_map(|letter| letter.age(now)).max());
            }
        }
    };
    let closed = reader.close().await;
    read.and(closed).map_err(failed).ok()?;
    Some(depth)
}
