//! What the fuzz targets see of this crate; built for them only.

use std::sync::Arc;
use std::time::Duration;

use crate::dead_letter::{DeadLetters, Obituary, OwnHeaders, Republished};
use crate::key::{Key, Scope};
use crate::message::Message;
use crate::publisher::{Outgoing, Publisher};
use crate::store::Reason;

/// What our own headers of `message` say in `scope`: the key and the generation.
pub fn own_headers(scope: &Scope, message: &Message) -> Option<(Option<Key>, u32)> {
    Republished::read(scope, message).map(|ours| (ours.key, ours.generation))
}

/// The dead letter of `message`.
pub fn letter(
    publisher: Arc<dyn Publisher>,
    scope: &Scope,
    key: Key,
    message: &Message,
    generation: u32,
    error: &str,
) -> Outgoing {
    let why = Obituary {
        reason: Reason::Permanent,
        error: error.to_owned(),
        attempts: 1,
        lost: 0,
        generation,
        first_age: Duration::ZERO,
    };
    DeadLetters::new(publisher, "dead").letter(scope, Some(key), message, &why, OwnHeaders::All)
}
