//! Dead letters of records that failed permanently, with the same headers as a pipeline's.

use std::time::SystemTime;

use onceward::dead_letter::{HEADER_PREFIX, LetterBuilder};
use onceward::store::Reason;
use onceward::{Message, Outgoing};

/// Creates the dead letter of `message`, to the topic `to`.
pub(crate) fn create_letter(
    to: &str,
    message: &Message,
    reason: Reason,
    error: &str,
    attempts: u32,
) -> Outgoing {
    LetterBuilder::new(message)
        .reason(reason)
        .error(error)
        .attempts(attempts)
        .failed_at(SystemTime::now())
        .origin()
        .message_id()
        .to(to)
}

/// The header with the size of an omitted payload, in bytes.
const OVERSIZE: &str = "onceward-oversize-bytes";

/// Creates the replacement of a letter that exceeds its topic's limit: our headers, which identify the record, without its
/// payload and its own headers.
pub(crate) fn without_payload(letter: &Outgoing) -> Outgoing {
    let ours = letter.headers.iter().filter(|(name, _)| name.starts_with(HEADER_PREFIX));
    let mut headers: Vec<_> = ours.cloned().collect();
    headers.push((OVERSIZE.to_owned(), letter.payload.len().to_string().into()));
    let (destination, timestamp) = (letter.destination.clone(), letter.timestamp);
    Outgoing { destination, headers, timestamp, ..Outgoing::default() }
}
