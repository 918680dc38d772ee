//! Writes the audit trail of a command: [`Auditor`].

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use onceward::store::{AuditEntry, AuditLog};
use onceward::{Error, Scope};
use serde::{Deserialize, Serialize};

use super::letter::ReadLetter;
use crate::config::Lookup;

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

/// An entry, as the store keeps it and `dlq log --json` prints it.
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

/// Appends entries for one run of a command.
pub(super) struct Auditor {
    log: Arc<dyn AuditLog>,
    scope: Scope,
    run: String,
    user: Option<String>,
    uid: Option<u32>,
    why: Option<String>,
    edited: bool,
}

impl Auditor {
    pub(super) fn new(
        log: Arc<dyn AuditLog>,
        scope: Scope,
        why: Option<&str>,
        edited: bool,
        env: Lookup<'_>,
    ) -> Self {
        Self {
            log,
            scope,
            run: format!("{:016x}", fastrand::u64(..)),
            user: user(env),
            // The owner of a process's own directory is its effective user.
            uid: std::fs::metadata("/proc/self").ok().map(|own| own.uid()),
            why: why.map(str::to_owned),
            edited,
        }
    }

    /// Records what happens to letters; durable on return.
    pub(super) async fn record(
        &self,
        action: LetterAction,
        letters: &[&ReadLetter<'_>],
    ) -> Result<(), Error> {
        if letters.is_empty() {
            return Ok(());
        }
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let entries: Vec<_> = letters.iter().map(|letter| self.entry(action, letter, &at)).collect();
        self.log.append(&self.scope, &entries).await
    }

    fn entry(&self, action: LetterAction, letter: &ReadLetter<'_>, at: &str) -> AuditEntry {
        let short = |text: String| text.chars().take(256).collect::<String>();
        let record = LetterRecord {
            at: at.to_owned(),
            run: self.run.clone(),
            action,
            letter: short(letter.id()),
            user: self.user.clone(),
            uid: self.uid,
            why: self.why.clone(),
            key: letter.key().map(|key| key.to_string()),
            generation: letter.generation,
            reason: letter.reason.to_string(),
            message_id: letter.message_id().map(short),
            edited: self.edited,
        };
        // Texts and numbers always serialize.
        let text = serde_json::to_string(&record).unwrap_or_default();
        AuditEntry { subject: letter.subject(), settles: action != LetterAction::Redrive, text }
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

/// The user who runs the command, as the environment names them.
fn user(env: Lookup<'_>) -> Option<String> {
    let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(env);
    named.map(|name| name.chars().take(64).collect())
}
