//! Requests of the status page about a dead letter, and their outcomes: [`LetterActions`].

use async_trait::async_trait;

/// Carries out what the status page asks for.
#[async_trait]
pub(crate) trait LetterActions: Send + Sync {
    /// Redrives or purges one letter. Not cancel safe: dropped halfway it is in the state of a command that was killed, and may be
    /// repeated.
    async fn act(&self, order: &LetterOrder) -> LetterOutcome;
}

/// What to do with a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterRequest {
    /// Move it back to its source.
    Redrive,
    /// Delete it.
    Purge,
}

impl LetterRequest {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Purge => "purge",
        }
    }
}

/// A request for one letter.
#[derive(Clone, Debug)]
pub(crate) struct LetterOrder {
    pub(crate) request: LetterRequest,
    /// The id of the letter.
    pub(crate) id: String,
    /// Why, for the audit trail.
    pub(crate) why: String,
    /// Who, for the audit trail.
    pub(crate) by: Option<String>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LetterOutcome {
    /// It is in its source again.
    Redriven,
    /// Its key had completed in the meantime, so it was only deleted.
    Resolved,
    /// It is deleted.
    Purged,
    /// It cannot be redriven, and was left.
    Left(&'static str),
    /// There is no such letter.
    Absent,
    /// It failed; some of it may have been done.
    Failed(String),
}
