//! Makes the message of a letter, to be published to the source: [`Republisher`].

use bytes::Bytes;
use onceward::dead_letter::{HEADER_ID, HEADER_MAC, HEADER_MESSAGE_ID, HEADER_PREFIX};
use onceward::own_headers::LETTER;
use onceward::{Outgoing, OwnHeaders};
use onceward_plugin::LetterTarget;

use super::letter::ReadLetter;

/// How letters become messages again.
pub(super) struct Republisher {
    pub(super) to: LetterTarget,
    pub(super) own: OwnHeaders,
    /// The message carries our headers: it is sealed, or its source recognises a letter by nothing else.
    pub(super) sends_headers: bool,
    /// Replaces the payload.
    pub(super) payload: Option<Bytes>,
}

impl Republisher {
    /// The message of `letter`, without our headers, or with them and a new seal.
    pub(super) fn message(&self, letter: &ReadLetter<'_>) -> Outgoing {
        let message = letter.message;
        let is_kept = |name: &str| match name.starts_with(HEADER_PREFIX) {
            true => self.sends_headers && ![HEADER_ID, HEADER_MAC].contains(&name) && !name.ends_with("-mac"),
            false => true,
        };
        let kept = message.headers().filter(|(name, _)| is_kept(name));
        let mut headers: Vec<(String, Bytes)> =
            kept.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        // It differs for each death of a message: a queue that deduplicates by id must take a second redrive of the same message.
        let own_id = letter.text(HEADER_ID).unwrap_or_default().to_owned();
        let id = letter.message_id().unwrap_or_default();
        if self.sends_headers && !id.is_empty() && message.header(HEADER_MESSAGE_ID).is_none() {
            headers.push((HEADER_MESSAGE_ID.to_owned(), id.clone().into()));
        }
        let null_payload = self.payload.is_none() && message.has_null_payload();
        let payload = self.payload.clone().unwrap_or_else(|| message.payload().clone());
        let pairs = || {
            let own_id = (!own_id.is_empty()).then_some((HEADER_ID, own_id.as_bytes()));
            headers.iter().map(|(name, value)| (name.as_str(), &value[..])).chain(own_id)
        };
        let sealed = (!null_payload).then_some(&payload[..]);
        if self.sends_headers
            && let Some((name, value)) = self.own.seal_parts(&LETTER, pairs, sealed)
        {
            headers.push((name.to_owned(), value));
        }
        Outgoing {
            destination: self.to.destination(message),
            id,
            own_id,
            order_key: message.order_key().cloned(),
            headers,
            payload,
            null_payload,
            timestamp: message.timestamp(),
            native: message.native().cloned(),
        }
    }
}
