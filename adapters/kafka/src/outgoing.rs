//! A message to be sent, as the client takes it.

use onceward::{Error, ErrorKind, Outgoing};
use rdkafka::message::{Header, OwnedHeaders};

use crate::message::MESSAGE_ID;

/// The headers of `outgoing`, with its id among them unless there is one.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for what the client would panic at: NUL in a header's name or in the topic.
pub(crate) fn headers(outgoing: &Outgoing) -> Result<OwnedHeaders, Error> {
    if outgoing.destination.contains('\0') || outgoing.headers.iter().any(|(name, _)| name.contains('\0')) {
        let what = "a header's name or the topic has a NUL byte in it, which Kafka's client cannot send";
        return Err(Error::new(ErrorKind::Corrupt, "publish to Kafka", what));
    }
    let mut headers = OwnedHeaders::new_with_capacity(outgoing.headers.len() + 1);
    for (name, value) in &outgoing.headers {
        headers = headers.insert(Header { key: name, value: Some(&value[..]) });
    }
    if !outgoing.id.is_empty() && !outgoing.headers.iter().any(|(name, _)| name == MESSAGE_ID) {
        headers = headers.insert(Header { key: MESSAGE_ID, value: Some(&outgoing.id) });
    }
    Ok(headers)
}
