//! Copies of records in retry topics, and the headers that identify their originals: [`CopyHeaders`].

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_TIMESTAMP};
use onceward::own_headers::Seal;
use onceward::telemetry::RateLimited;
use onceward::{HeaderTrust, Message, Outgoing, OwnHeaders, Position};

/// The due time, in milliseconds since 1970.
pub(super) const DUE: &str = "onceward-retry-due-ms";
/// The topic of the original.
pub(super) const ORIGIN: &str = "onceward-retry-origin";
/// The position of the original: incarnation, partition and offset.
pub(super) const POSITION: &str = "onceward-retry-position";
/// The authentication code over the headers above and the timestamp of the message.
pub(super) const MAC: &str = "onceward-retry-mac";
/// Authenticates a copy. A dead letter's own headers have a seal of their own, which the copy keeps.
const SEAL: Seal = Seal { header: MAC, covers: &[DUE, ORIGIN, POSITION, HEADER_TIMESTAMP] };

/// How far the clocks of workers may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Creates the copy of `message` that waits in the topic `destination` until `after` has passed.
pub(super) fn create_copy(
    message: &Message,
    destination: &str,
    after: Duration,
    own: &OwnHeaders,
) -> Outgoing {
    // A producer's headers of these names would count beside ours.
    let is_ours = |name: &str| matches!(name, DUE | ORIGIN | POSITION | MAC);
    let theirs = message.headers().filter(|(name, _)| !is_ours(name));
    let mut headers: Vec<(String, Bytes)> =
        theirs.map(|(name, value)| (name.to_owned(), value.clone())).collect();
    let due_ms = (SystemTime::now() + after).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    headers.push((DUE.to_owned(), due_ms.to_string().into()));
    if let (Some(origin), Some(position)) = (message.origin(), message.position()) {
        headers.push((ORIGIN.to_owned(), origin.to_owned().into()));
        let position = format!("{}:{}:{}", position.incarnation, position.partition, position.offset);
        headers.push((POSITION.to_owned(), position.into()));
    }
    seal(message, &mut headers, own);
    Outgoing {
        destination: destination.to_owned(),
        // No id of its own: it is the same message.
        id: String::new(),
        order_key: message.order_key().cloned(),
        headers,
        payload: message.payload().clone(),
        null_payload: message.has_null_payload(),
        timestamp: message.timestamp(),
        native: message.native().cloned(),
        ..Outgoing::default()
    }
}

/// Adds the authentication code, and before it the header that the publisher would add.
fn seal(message: &Message, headers: &mut Vec<(String, Bytes)>, own: &OwnHeaders) {
    if !own.seals() {
        return;
    }
    let timestamp = message.timestamp().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    if let Some(timestamp) = timestamp.filter(|_| message.header(HEADER_TIMESTAMP).is_none()) {
        headers.push((HEADER_TIMESTAMP.to_owned(), timestamp.as_millis().to_string().into()));
    }
    let pairs = || headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
    let payload = (!message.has_null_payload()).then_some(&message.payload()[..]);
    if let Some((name, value)) = own.seal_parts(&SEAL, pairs, payload) {
        headers.push((name.to_owned(), value));
    }
}

/// The headers of a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CopyHeaders {
    pub(crate) origin: Option<Arc<str>>,
    pub(crate) position: Option<Position>,
    /// The remaining wait.
    pub(crate) wait: Duration,
    /// The timestamp of the original.
    pub(crate) timestamp: Option<SystemTime>,
}

impl CopyHeaders {
    /// Reads and removes the headers of a copy. A record that is no copy has no wait. Headers that are not trusted only provide
    /// the due time, since anyone who may write to the topic could name the position of another record. A due time later than
    /// `max_wait` from now is invalid, and the record is due at once.
    pub(crate) fn extract(
        headers: &mut Vec<(Box<str>, Bytes)>,
        payload: Option<&[u8]>,
        max_wait: Duration,
        own: &OwnHeaders,
    ) -> Self {
        let pairs = || headers.iter().map(|(name, value)| (&**name, &value[..]));
        let is_trusted = own.believes_parts(&SEAL, pairs, payload);
        // With a secret, a record without a valid seal is an ordinary record.
        let may_wait = is_trusted || own.trust() == HeaderTrust::Ignore;
        let mut copy = Self::default();
        // A dead letter keeps its timestamp header, under its own seal.
        let is_letter = headers.iter().any(|(name, _)| &**name == HEADER_GENERATION);
        headers.retain(|(name, value)| {
            let Ok(text) = std::str::from_utf8(value) else { return true };
            match &**name {
                DUE if may_wait => copy.wait = text.parse().map_or(Duration::ZERO, duration_until),
                ORIGIN if is_trusted => copy.origin = Some(text.into()),
                POSITION if is_trusted => copy.position = parse_position(text),
                HEADER_TIMESTAMP if is_trusted => {
                    copy.timestamp =
                        text.parse().ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
                    return is_letter;
                }
                DUE | ORIGIN | POSITION | MAC => {}
                _ => return true,
            }
            false
        });
        if copy.wait > max_wait.saturating_add(CLOCK_SKEW) {
            copy.wait = Duration::ZERO;
            if let Some(suppressed) = INVALID_DUE_TIME.allow("") {
                tracing::warn!(
                    ?max_wait,
                    suppressed,
                    "record of a retry topic has an invalid due time and is handled at once; check who may write to the topic"
                );
            }
        }
        copy
    }
}

/// Limits the warnings about invalid due times.
static INVALID_DUE_TIME: LazyLock<RateLimited> = LazyLock::new(RateLimited::default);

fn duration_until(due_ms: u64) -> Duration {
    let due = UNIX_EPOCH + Duration::from_millis(due_ms.min(1 << 48));
    due.duration_since(SystemTime::now()).unwrap_or_default()
}

fn parse_position(text: &str) -> Option<Position> {
    let mut parts = text.rsplitn(3, ':');
    let (offset, partition) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Position { incarnation: parts.next()?.into(), partition, offset })
}
