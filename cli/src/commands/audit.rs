//! Entries of the audit trail: [`LetterRecord`], [`KeyChange`]; and their removal, [`remove_old`].

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use onceward::store::AuditLog;
use onceward::{Error, Scope};
use serde::{Deserialize, Serialize};

use crate::config::Lookup;

/// The most entries that one call removes.
const BATCH: u32 = 500;

/// Removes the entries of the scope that are older than `retention`, in small calls, and answers how many.
///
/// # Errors
/// The store cannot answer. Entries removed until then stay removed.
pub(super) async fn remove_old(
    trail: &dyn AuditLog,
    scope: &Scope,
    retention: Duration,
) -> Result<u64, Error> {
    let mut removed = 0;
    loop {
        let more = trail.remove_older(scope, retention, BATCH).await?;
        removed += more;
        if more < u64::from(BATCH) {
            return Ok(removed);
        }
        tokio::task::yield_now().await;
    }
}

/// The user who runs a command, by the word of the machine that it runs on.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    /// As the environment names them.
    pub(super) user: Option<String>,
    /// The effective one.
    pub(super) uid: Option<u32>,
}

impl Operator {
    pub(super) fn new(env: Lookup<'_>) -> Self {
        let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(env);
        Self {
            user: named.map(|name| name.chars().take(64).collect()),
            // The owner of a process's own directory is its effective user.
            uid: std::fs::metadata("/proc/self").ok().map(|own| own.uid()),
        }
    }

    /// An operator with the token of the status page, by the name that they gave.
    pub(super) fn of_the_status_page(name: Option<&str>) -> Self {
        let page = "status page";
        let user = name.map_or_else(|| page.to_owned(), |name| format!("{name}, {page}"));
        Self { user: Some(user), uid: None }
    }

    fn words(user: Option<&str>, uid: Option<u32>) -> String {
        user.map(str::to_owned).or_else(|| uid.map(|uid| format!("uid {uid}"))).unwrap_or_default()
    }
}

/// The time of an entry.
pub(super) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// What happened to a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LetterAction {
    /// It is about to be published to the source.
    Redrive,
    /// The publish is confirmed.
    Redriven,
    /// Its key has completed or died in a later generation.
    Resolved,
    /// It is deleted.
    Purged,
}

impl LetterAction {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Redriven => "redriven",
            Self::Resolved => "resolved",
            Self::Purged => "purged",
        }
    }
}

/// An entry about a letter, as the store keeps it and `dlq log --json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LetterRecord {
    pub(super) at: String,
    /// The same for all entries of one command.
    pub(super) run: String,
    pub(super) action: LetterAction,
    pub(super) letter: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The generation of the letter.
    pub(super) generation: u32,
    pub(super) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) message_id: Option<String>,
    /// The payload was replaced.
    #[serde(default)]
    pub(super) edited: bool,
}

impl LetterRecord {
    /// The entry in one line, for people.
    pub(super) fn words(&self) -> String {
        let user = Operator::words(self.user.as_deref(), self.uid);
        let edited = if self.edited { " with another payload" } else { "" };
        let why = self.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        format!(
            "{} {:<8} {} (generation {}, {}){edited} by {user}{why}",
            self.at,
            self.action.as_str(),
            self.letter,
            self.generation,
            self.reason
        )
    }
}

/// What was done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KeyAction {
    /// It was about to be forgotten.
    Forget,
    /// It was about to be marked completed.
    Complete,
}

impl KeyAction {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Forget => "forget",
            Self::Complete => "complete",
        }
    }
}

/// An entry about a key, as the store keeps it and `keys explain --json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeyChange {
    pub(super) at: String,
    pub(super) action: KeyAction,
    pub(super) key: String,
    /// The state before, or `unknown`.
    pub(super) before: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

impl KeyChange {
    /// The entry in one line, for people.
    pub(super) fn words(&self) -> String {
        let user = Operator::words(self.user.as_deref(), self.uid);
        let why = self.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("{} {:<8} (was {}) by {user}{why}", self.at, self.action.as_str(), self.before)
    }
}
