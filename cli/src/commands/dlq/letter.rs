//! One dead letter, as its headers describe it: [`ReadLetter`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onceward::dead_letter::{
    HEADER_ATTEMPTS, HEADER_ERROR, HEADER_GENERATION, HEADER_ID, HEADER_KEY, HEADER_LAST_AT, HEADER_LOST,
    HEADER_MESSAGE_ID, HEADER_ORIGIN, HEADER_POSITION, HEADER_REASON, HEADER_SCOPE,
};
use onceward::own_headers::LETTER;
use onceward::store::Reason;
use onceward::{Key, Message, OwnHeaders, Scope};
use serde::Serialize;

/// A dead letter.
pub(super) struct ReadLetter<'m> {
    pub(super) message: &'m Message,
    pub(super) reason: Reason,
    pub(super) generation: u32,
}

impl<'m> ReadLetter<'m> {
    /// The letter in `message`; `None` if it is not one of `scope`.
    pub(super) fn of(message: &'m Message, scope: &Scope) -> Option<Self> {
        let letter = Self { message, reason: Reason::Defect, generation: 0 };
        if letter.text(HEADER_SCOPE) != Some(scope.as_str()) {
            return None;
        }
        let reason = letter.text(HEADER_REASON)?;
        let reason = Reason::ALL.into_iter().find(|own| own.as_str() == reason)?;
        let generation = letter.number(HEADER_GENERATION)?;
        Some(Self { reason, generation, ..letter })
    }

    pub(super) fn text(&self, name: &str) -> Option<&'m str> {
        self.message.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.text(name)?.parse().ok()
    }

    pub(super) fn key(&self) -> Option<Key> {
        self.text(HEADER_KEY).and_then(Key::from_hex)
    }

    /// The name of the letter for operators: the id it was published with, or where it stands. Copies of one letter may share it.
    pub(super) fn id(&self) -> String {
        let own = self.text(HEADER_ID).map(str::to_owned);
        let position = || self.message.position().map(ToString::to_string);
        own.or_else(position).or_else(|| self.message_id()).unwrap_or_else(|| "unnamed".to_owned())
    }

    /// The name of the letter in the audit trail: where it stands, if that is known, since copies have the same id.
    pub(super) fn subject(&self) -> String {
        subject_of(self.message)
            .unwrap_or_else(|| format!("id {}", self.id().chars().take(256).collect::<String>()))
    }

    /// The id of the message when it died.
    pub(super) fn message_id(&self) -> Option<String> {
        let own = || self.message.id().map(|id| String::from_utf8_lossy(id).into_owned());
        self.text(HEADER_MESSAGE_ID).map(str::to_owned).or_else(own)
    }

    pub(super) fn error(&self) -> Option<&'m str> {
        self.text(HEADER_ERROR)
    }

    /// When the message died, if its letter has that.
    pub(super) fn died_at(&self) -> Option<SystemTime> {
        let millis = self.text(HEADER_LAST_AT)?.parse().ok()?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// How long ago the message died.
    pub(super) fn age(&self, now: SystemTime) -> Option<Duration> {
        Some(now.duration_since(self.died_at()?).unwrap_or_default())
    }

    pub(super) fn facts(&self, own: &OwnHeaders, now: SystemTime) -> LetterFacts {
        let owned = |name| self.text(name).map(str::to_owned);
        LetterFacts {
            id: self.id(),
            reason: self.reason.as_str(),
            generation: self.generation,
            key: self.key().map(|key| key.to_string()),
            error: self.error().map(str::to_owned),
            attempts: self.number(HEADER_ATTEMPTS),
            lost: self.number(HEADER_LOST),
            died_at: self.died_at().map(|at| humantime::format_rfc3339_millis(at).to_string()),
            age_ms: self.age(now).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            origin: owned(HEADER_ORIGIN),
            position: owned(HEADER_POSITION),
            message_id: self.message_id(),
            bytes: self.message.payload().len(),
            sealed: own.seals() && own.believes(&LETTER, self.message),
        }
    }
}

/// The name in the audit trail of a message that stands at a place of its own.
pub(super) fn subject_of(message: &Message) -> Option<String> {
    message.position().map(|position| format!("at {position}"))
}

/// A letter as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct LetterFacts {
    pub(super) id: String,
    pub(super) reason: &'static str,
    generation: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    died_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    bytes: usize,
    sealed: bool,
}
