//! Entry points of the fuzz target; compiled for it and for tests only.

use bytes::Bytes;
use google_cloud_pubsub::model::Message as Received;
use onceward::{Message, Outgoing, OwnHeaders};

use crate::format::outgoing;
use crate::format::packed_headers::{self, PackedAttributes};
use crate::message;

/// Packs headers into attributes; none without headers.
pub fn pack(headers: &[(String, Vec<u8>)]) -> Vec<(String, String)> {
    let mut packed = PackedAttributes::default();
    headers.iter().for_each(|(name, value)| packed.add(name, value));
    packed.into_attributes()
}

/// Parses the packed headers among attributes.
pub fn unpack(attributes: &[(String, String)]) -> Option<Vec<(String, Bytes)>> {
    packed_headers::unpack(attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Converts a received message with this payload and these attributes.
pub fn deliver(payload: &[u8], attributes: &[(String, String)]) -> Message {
    let received = Received::new().set_data(payload.to_vec()).set_message_id("pubsub");
    let received = received.set_attributes(attributes.iter().cloned());
    message::to_message(received, None, "projects/p/subscriptions/s".into(), &OwnHeaders::trusted())
}

/// The attributes of the message to publish; `None` if it exceeds a limit of Pub/Sub.
pub fn send(outgoing: &Outgoing) -> Option<Vec<(String, String)>> {
    Some(outgoing::to_message(outgoing).ok()?.attributes.into_iter().collect())
}
