//! Converts an outgoing message to the parts of a Kafka record.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onceward::dead_letter::{HEADER_ID, HEADER_PREFIX, HEADER_TIMESTAMP as TIMESTAMP};
use onceward::{Error, ErrorKind, Outgoing};
use rdkafka::message::{Header, OwnedHeaders};

use crate::message::{KafkaHeaders, MESSAGE_ID};

/// The retention of the destination would delete older records at once, or too soon.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Brokers reject records with timestamps an hour ahead.
const MAX_AHEAD: Duration = Duration::from_secs(60);

/// Returns the record's timestamp in milliseconds: the message's own, if it is neither too old nor in the future.
#[must_use]
pub fn to_timestamp_ms(outgoing: &Outgoing) -> Option<i64> {
    let at = outgoing.timestamp?;
    let fits = match SystemTime::now().duration_since(at) {
        Ok(age) => age <= MAX_AGE,
        Err(ahead) => ahead.duration() <= MAX_AHEAD,
    };
    fits.then(|| to_millis(at)).flatten()
}

fn to_millis(at: SystemTime) -> Option<i64> {
    i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// Returns the record's headers: the native ones of a message from Kafka, without those of an earlier dead letter or retry, the
/// headers of `outgoing`, and its id, unless a header has it. `None` for a record without headers.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a NUL byte in a header's name or in the topic, at which the client would panic.
pub fn to_headers(outgoing: &Outgoing) -> Result<Option<OwnedHeaders>, Error> {
    if outgoing.destination.contains('\0') || outgoing.headers.iter().any(|(name, _)| name.contains('\0')) {
        let what = "a header name or the topic contains a NUL byte, which Kafka's client cannot send";
        return Err(Error::new(ErrorKind::Corrupt, "publish to Kafka", what));
    }
    let native = outgoing.native.as_ref().and_then(|native| native.get::<KafkaHeaders>());
    let Outgoing { headers, id, own_id, timestamp, .. } = outgoing;
    if native.is_none() && headers.is_empty() && id.is_empty() && own_id.is_empty() && timestamp.is_none() {
        return Ok(None);
    }
    let is_ours = |name: &str| name.starts_with(HEADER_PREFIX);
    let mut headers = match native {
        Some(KafkaHeaders::Raw(raw)) => raw.clone(),
        _ => OwnedHeaders::new_with_capacity(outgoing.headers.len() + 3),
    };
    if let Some(KafkaHeaders::Parsed(native)) = native {
        for (name, value) in
            native.iter().filter(|(name, _)| !is_ours(name) && !outgoing.replaces_native(name))
        {
            headers = headers.insert(Header { key: name, value: value.as_deref() });
        }
    }
    let is_new = |name: &str| match native {
        Some(KafkaHeaders::Parsed(native)) => {
            is_ours(name) || outgoing.replaces_native(name) || !native.iter().any(|(own, _)| **own == *name)
        }
        _ => true,
    };
    let mut add = |name: &str, value: &[u8]| {
        let before = std::mem::take(&mut headers);
        headers = before.insert(Header { key: name, value: Some(value) });
    };
    let has = |name: &str| outgoing.headers.iter().any(|(own, _)| own == name);
    for (name, value) in outgoing.headers.iter().filter(|(name, _)| is_new(name)) {
        // Our id is written once.
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
    if let Some(at) = outgoing.timestamp.and_then(to_millis)
        && to_timestamp_ms(outgoing).is_none()
        && !has(TIMESTAMP)
    {
        add(TIMESTAMP, at.to_string().as_bytes());
    }
    Ok(Some(headers))
}

/// Returns the record's payload; `None` for a tombstone.
#[must_use]
pub fn to_payload(outgoing: &Outgoing) -> Option<&[u8]> {
    let payload: &Bytes = &outgoing.payload;
    (!outgoing.null_payload).then_some(&payload[..])
}

#[cfg(test)]
mod tests {
    use onceward::adapter::Native;
    use onceward::dead_letter::HEADER_REASON;
    use rdkafka::message::Headers;

    use super::*;

    #[test]
    fn a_trace_context_replaces_the_native_one_but_not_in_a_dead_letter() {
        let sent = |reason: Option<&'static str>| {
            let native =
                KafkaHeaders::Parsed(vec![("traceparent".into(), Some("old".into())), ("a".into(), None)]);
            let mut outgoing = Outgoing { native: Some(Native::new(native)), ..Outgoing::default() };
            outgoing.headers.push(("traceparent".to_owned(), "new".into()));
            outgoing.headers.extend(reason.map(|reason| (HEADER_REASON.to_owned(), reason.into())));
            let headers = to_headers(&outgoing).unwrap().unwrap();
            let found = headers.iter().filter(|header| header.key == "traceparent");
            found.map(|header| header.value.unwrap().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(sent(None), [b"new"]);
        assert_eq!(sent(Some("permanent")), [b"old"]);
    }
}
