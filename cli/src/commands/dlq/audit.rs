//! Writes the audit trail of a command: [`Auditor`].

use std::sync::Arc;

use onceward::store::{AuditEntry, AuditLog};
use onceward::{Error, Scope};

use super::letter::ReadLetter;
use crate::commands::audit::{LetterAction, LetterRecord, Operator, now};

/// Appends entries for one run of a command.
pub(super) struct Auditor {
    log: Arc<dyn AuditLog>,
    scope: Scope,
    run: String,
    operator: Operator,
    why: Option<String>,
    edited: bool,
}

impl Auditor {
    pub(super) fn new(
        log: Arc<dyn AuditLog>,
        scope: Scope,
        operator: Operator,
        why: Option<&str>,
        edited: bool,
    ) -> Self {
        Self {
            log,
            scope,
            run: format!("{:016x}", fastrand::u64(..)),
            operator,
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
        let at = now();
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
            user: self.operator.user.clone(),
            uid: self.operator.uid,
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
        self.operator.user.as_deref()
    }
}
