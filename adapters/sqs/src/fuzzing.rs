//! Entry points of the fuzz targets; compiled for them and for tests only.

use aws_sdk_sqs::types::Message as Received;
use bytes::Bytes;
use onceward::{Message, Outgoing, OwnHeaders};

use crate::config::SqsQueueConfig;
use crate::format::packed_headers::{self, PackedHeaders};
use crate::format::{attributes, native};
use crate::message;

/// An attribute: name, data type, value.
pub type TypedAttribute = (String, String, Vec<u8>);

/// Packs headers into the text of one attribute; `None` without headers.
pub fn pack(headers: &[(String, Vec<u8>)]) -> Option<String> {
    let mut packed = PackedHeaders::default();
    headers.iter().for_each(|(name, value)| packed.add(name, value));
    packed.into_text()
}

/// Parses the headers in the text of an attribute.
pub fn unpack(text: &[u8]) -> Option<Vec<(String, Bytes)>> {
    let headers = packed_headers::unpack(text)?;
    Some(headers.into_iter().map(|header| (header.name, header.value)).collect())
}

/// Encodes a payload as a body that SQS accepts; true if it is base64.
pub fn body(payload: &[u8]) -> (String, bool) {
    packed_headers::encode_body(payload)
}

/// Decodes a base64 body.
pub fn payload(body: &[u8]) -> Option<Bytes> {
    packed_headers::decode_body(body)
}

/// Converts a received message with this body and these attributes: name, type, value.
pub fn deliver(body: &str, attributes: &[(String, String, Vec<u8>)], unwrap_sns: bool) -> Message {
    let mut received = Received::builder().message_id("sqs").body(body);
    for (name, data_type, value) in attributes {
        if let Some(value) = attributes::build(data_type, value) {
            received = received.message_attributes(name, value);
        }
    }
    let mut queue = SqsQueueConfig::new("http://127.0.0.1/queue");
    queue.unwrap_sns = unwrap_sns;
    queue.own_headers = OwnHeaders::trusted();
    message::to_message(received.build(), "queue".into(), &queue)
}

/// Builds the message to send: its body, and its attributes as name, type, value.
pub fn send(outgoing: &Outgoing) -> Option<(String, Vec<TypedAttribute>)> {
    let (entry, _) = native::to_entry(0, outgoing).ok()?;
    let attributes = entry.message_attributes.unwrap_or_default().into_iter();
    let attributes = attributes
        .map(|(name, value)| (name, value.data_type.clone(), attributes::to_bytes(&value).to_vec()));
    Some((entry.message_body, attributes.collect()))
}
