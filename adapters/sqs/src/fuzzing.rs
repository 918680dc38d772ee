//! Private functions that the fuzz targets call; built for them and for tests only.

use aws_sdk_sqs::types::Message as Received;
use bytes::Bytes;
use onceward::{Message, Outgoing, OwnHeaders};

use crate::{QueueConfig, form, message, pack};

/// Headers as the text of one attribute; `None` if there are none.
pub fn pack(headers: &[(String, Vec<u8>)]) -> Option<String> {
    let mut packed = pack::Packed::default();
    headers.iter().for_each(|(name, value)| packed.add(name, value));
    packed.into_text()
}

/// The headers in the text of an attribute.
pub fn unpack(text: &[u8]) -> Option<Vec<(String, Bytes)>> {
    let headers = pack::unpack(text)?;
    Some(headers.into_iter().map(|header| (header.name, header.value)).collect())
}

/// A body as SQS takes it, and whether it is base64.
pub fn body(payload: &[u8]) -> (String, bool) {
    pack::body(payload)
}

/// The payload of a body in base64.
pub fn payload(body: &[u8]) -> Option<Bytes> {
    pack::payload(body)
}

/// The message of a delivery with this body and these attributes: name, type, value. Our own headers are believed.
pub fn deliver(body: &str, attributes: &[(String, String, Vec<u8>)], unwrap_sns: bool) -> Message {
    let mut received = Received::builder().message_id("sqs").body(body);
    for (name, data_type, value) in attributes {
        if let Some(value) = form::value(data_type, value) {
            received = received.message_attributes(name, value);
        }
    }
    let mut queue = QueueConfig::new("http://127.0.0.1/queue");
    queue.unwrap_sns = unwrap_sns;
    queue.own_headers = OwnHeaders::trusted();
    message::from(received.build(), "queue".into(), &queue)
}

/// What is sent for a message: its body, and its attributes as name, type, value.
pub fn send(outgoing: &Outgoing) -> Option<(String, Vec<(String, String, Vec<u8>)>)> {
    let (entry, _) = form::entry(0, outgoing).ok()?;
    let attributes = entry.message_attributes.unwrap_or_default().into_iter();
    let attributes =
        attributes.map(|(name, value)| (name, value.data_type.clone(), form::bytes(&value).to_vec()));
    Some((entry.message_body, attributes.collect()))
}
