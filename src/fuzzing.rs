//! Private functions that the fuzz targets call; built for them and for tests only.

use std::sync::Arc;
use std::time::Duration;

use crate::dead_letter::{DeadLetters, Extent, FailureReport, Provenance};
use crate::key::{Key, Scope};
use crate::message::Message;
use crate::own_headers::OwnHeaders;
use crate::publisher::{Outgoing, Publisher};
use crate::store::Reason;

/// The content of our own headers of `message` in `scope`, as far as `own` believes them: the key and the generation.
pub fn own_headers(scope: &Scope, message: &Message, own: &OwnHeaders) -> Option<(Option<Key>, u32)> {
    match Provenance::of(scope, message, own) {
        Provenance::Ours(ours) => Some((ours.key, ours.generation)),
        Provenance::Plain | Provenance::Unproven => None,
    }
}

/// The dead letter of `message`, sealed with the secrets of `own`.
pub fn letter(
    publisher: Arc<dyn Publisher>,
    scope: &Scope,
    key: Key,
    message: &Message,
    generation: u32,
    error: &str,
    own: &OwnHeaders,
) -> Outgoing {
    let why = FailureReport {
        reason: Reason::Permanent,
        error: error.to_owned(),
        attempts: 1,
        lost: 0,
        generation,
        first_age: Duration::ZERO,
        again: false,
    };
    DeadLetters::new(publisher, "dead").letter(scope, Some(key), message, &why, Extent::All, own)
}
