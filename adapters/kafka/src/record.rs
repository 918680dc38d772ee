//! A message to be sent, as the client takes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::dead_letter::{HEADER_ID, HEADER_PREFIX, HEADER_TIMESTAMP as TIMESTAMP};
use onceward::{Error, ErrorKind, Outgoing};
use rdkafka::message::{Header, OwnedHeaders};

use crate::message::{KafkaHeaders, MESSAGE_ID};

/// Older records would be deleted by the retention of the topic that they are sent to, soon or at once.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Brokers refuse records that are made an hour from now.
const NEWEST: Duration = Duration::from_secs(60);

/// The timestamp of the record for `outgoing`, in milliseconds: the message's own, if the record can have it.
pub fn timestamp_ms(outgoing: &Outgoing) -> Option<i64> {
    let at = outgoing.timestamp?;
    let now = SystemTime::now();
    let fits = match now.duration_since(at) {
        Ok(age) => age <= OLDEST,
        Err(ahead) => ahead.duration() <= NEWEST,
    };
    fits.then(|| millis(at)).flatten()
}

fn millis(at: SystemTime) -> Option<i64> {
    i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// The headers of `outgoing`: in the form they came in, if they came from Kafka, without what an earlier letter or retry said;
/// our own; its id, unless there is such a header.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for what the client would panic at: NUL in a header's name or in the topic.
pub fn headers(outgoing: &Outgoing) -> Result<OwnedHeaders, Error> {
    if outgoing.destination.contains('\0') || outgoing.headers.iter().any(|(name, _)| name.contains('\0')) {
        let what = "a header's name or the topic has a NUL byte in it, which Kafka's client cannot send";
        return Err(Error::new(ErrorKind::Corrupt, "publish to Kafka", what));
    }
    let native = outgoing.native.as_ref().and_then(|native| native.get::<KafkaHeaders>());
    let is_ours = |name: &str| name.starts_with(HEADER_PREFIX);
    let mut headers = match native {
        Some(KafkaHeaders::Raw(raw)) => raw.clone(),
        _ => OwnedHeaders::new_with_capacity(outgoing.headers.len() + 3),
    };
    if let Some(KafkaHeaders::Parsed(native)) = native {
        for (name, value) in native.iter().filter(|(name, _)| !is_ours(name)) {
            headers = headers.insert(Header { key: name, value: value.as_deref() });
        }
    }
    let is_new = |name: &str| match native {
        Some(KafkaHeaders::Parsed(native)) => is_ours(name) || !native.iter().any(|(own, _)| **own == *name),
        _ => true,
    };
    let mut add = |name: &str, value: &[u8]| {
        let before = std::mem::take(&mut headers);
        headers = before.insert(Header { key: name, value: Some(value) });
    };
    let has = |name: &str| outgoing.headers.iter().any(|(own, _)| own == name);
    for (name, value) in outgoing.headers.iter().filter(|(name, _)| is_new(name)) {
        // Ours are written once.
        if name != HEADER_ID || outgoing.own_id.is_empty() {
            add(name, value);
        }
    }
    if !outgoing.own_id.is_empty() {
        add(HEADER_ID, outgoing.own_id.as_bytes());
    }
    if !outgoing.id.is_empty() && !has(MESSAGE_ID) {
        add(MESSAGE_ID, outgoing.id.as_bytes());
    }
    if let Some(at) = outgoing.timestamp.and_then(millis)
        && timestamp_ms(outgoing).is_none()
        && !has(TIMESTAMP)
    {
        add(TIMESTAMP, at.to_string().as_bytes());
    }
    Ok(headers)
}

/// The payload; nothing for a tombstone.
pub fn payload(outgoing: &Outgoing) -> Option<&[u8]> {
    let payload: &Bytes = &outgoing.payload;
    (!outgoing.null_payload).then_some(&payload[..])
}
