//! Builds the message to publish: [`to_message`].

use google_cloud_pubsub::model::Message;
use onceward::dead_letter::{HEADER_ID, HEADER_MESSAGE_ID};
use onceward::{Error, ErrorKind, Outgoing};

use super::attributes::{MAX_ATTRIBUTES, plain_text};
use super::facts::is_fact;
use super::packed_headers::{PackedAttributes, is_packed};

/// The attribute of a message without a payload and without other attributes, which Pub/Sub rejects.
pub(crate) const EMPTY: &str = "onceward-empty";
/// The largest message, data and attributes together, in bytes: a publish request may have 10 MB.
const LARGEST: usize = 10_000_000;
/// The longest ordering key, in bytes.
const LONGEST_KEY: usize = 1024;

/// Builds the message to publish for `outgoing`.
///
/// # Errors
/// [`ErrorKind::TooLarge`] if it exceeds a limit of Pub/Sub.
pub(crate) fn to_message(outgoing: &Outgoing) -> Result<Message, Error> {
    let (mut attributes, packed) = divide(outgoing);
    let mut packed_attributes = packed.into_attributes();
    // Plain headers move into the packed ones if there are more than fit.
    if attributes.len() + packed_attributes.len() > MAX_ATTRIBUTES {
        let mut packed = PackedAttributes::default();
        for (name, value) in all_headers(outgoing) {
            packed.add(name, value);
        }
        (attributes, packed_attributes) = (Vec::new(), packed.into_attributes());
    }
    attributes.extend(packed_attributes);
    if attributes.is_empty() && outgoing.payload.is_empty() {
        attributes.push((EMPTY.to_owned(), "1".to_owned()));
    }
    let count = attributes.len();
    if count > MAX_ATTRIBUTES {
        let what = format!(
            "its headers fill {count} attributes of 1024 bytes, and a message may have {MAX_ATTRIBUTES}; send smaller headers"
        );
        return Err(too_large(outgoing, what));
    }
    let of_attributes: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    let ordering_key = outgoing.order_key.as_deref().map(ordering_key).unwrap_or_default();
    let bytes = outgoing.payload.len() + of_attributes + ordering_key.len();
    if bytes > LARGEST {
        let what = format!(
            "it has {bytes} bytes with its attributes, and Pub/Sub accepts {LARGEST}; send a smaller message"
        );
        return Err(too_large(outgoing, what));
    }
    let message = Message::new().set_data(outgoing.payload.clone()).set_attributes(attributes);
    Ok(message.set_ordering_key(ordering_key))
}

fn too_large(outgoing: &Outgoing, what: String) -> Error {
    Error::new(ErrorKind::TooLarge, format!("publish a message to {}", outgoing.destination), what)
}

/// The headers to send, with the ids: Pub/Sub assigns a new id to each message, so ours are headers.
fn all_headers(outgoing: &Outgoing) -> Vec<(&str, &[u8])> {
    let (id, own_id) = (outgoing.id.as_str(), outgoing.own_id.as_str());
    let (first, second) = if own_id.is_empty() { (id, "") } else { (own_id, id) };
    let ids = [(HEADER_ID, first), (HEADER_MESSAGE_ID, second)];
    let is_replaced = |name: &str| ids.iter().any(|(own, id)| *own == name && !id.is_empty());
    let headers = outgoing.headers.iter().filter(|(name, _)| !is_fact(name) && !is_replaced(name));
    let headers = headers.map(|(name, value)| (name.as_str(), &value[..]));
    headers
        .chain(ids.into_iter().filter(|(_, id)| !id.is_empty()).map(|(name, id)| (name, id.as_bytes())))
        .collect()
}

/// Divides the headers into attributes and packed ones. Of headers with the same name, the first is an attribute.
fn divide(outgoing: &Outgoing) -> (Vec<(String, String)>, PackedAttributes) {
    let mut packed = PackedAttributes::default();
    let mut attributes: Vec<(String, String)> = Vec::new();
    for (name, value) in all_headers(outgoing) {
        let is_free = !is_packed(name) && name != EMPTY && attributes.iter().all(|(own, _)| own != name);
        match plain_text(name, value).filter(|_| is_free) {
            Some(text) => attributes.push((name.to_owned(), text.to_owned())),
            None => packed.add(name, value),
        }
    }
    (attributes, packed)
}

/// The ordering key: the order key if it is text of an acceptable length, otherwise a hash of it.
fn ordering_key(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if text.len() <= LONGEST_KEY => text.to_owned(),
        _ => blake3::hash(key).to_hex().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn outgoing(headers: Vec<(String, Bytes)>) -> Outgoing {
        Outgoing { destination: "projects/p/topics/t".into(), headers, ..Outgoing::default() }
    }

    #[test]
    fn an_empty_message_has_an_attribute() {
        let message = to_message(&outgoing(Vec::new())).unwrap();
        assert_eq!(message.attributes.keys().collect::<Vec<_>>(), [EMPTY]);
    }

    #[test]
    fn ids_are_headers_and_replace_those_that_were_there() {
        let old = vec![(HEADER_ID.to_owned(), Bytes::from("old"))];
        let both = Outgoing { id: "theirs".into(), own_id: "ours".into(), ..outgoing(old.clone()) };
        let message = to_message(&both).unwrap();
        assert_eq!(
            (&*message.attributes[HEADER_ID], &*message.attributes[HEADER_MESSAGE_ID]),
            ("ours", "theirs")
        );
        let message = to_message(&Outgoing { id: "theirs".into(), ..outgoing(old) }).unwrap();
        assert_eq!((&*message.attributes[HEADER_ID], message.attributes.len()), ("theirs", 1));
    }

    #[test]
    fn more_headers_than_attributes_are_packed_and_too_many_bytes_are_refused() {
        let many = |count: usize, bytes: usize| {
            outgoing((0..count).map(|number| (format!("h{number}"), vec![b'x'; bytes].into())).collect())
        };
        assert_eq!(to_message(&many(100, 10)).unwrap().attributes.len(), 100);
        assert!(to_message(&many(101, 10)).unwrap().attributes.len() < 10);
        assert_eq!(to_message(&many(200, 1024)).unwrap_err().kind(), ErrorKind::TooLarge);
        let large = Outgoing { payload: vec![0; LARGEST + 1].into(), ..outgoing(Vec::new()) };
        assert_eq!(to_message(&large).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn an_ordering_key_is_the_order_key_or_its_hash() {
        assert_eq!(ordering_key("käse".as_bytes()), "käse");
        let hashes = [ordering_key(b"\xff"), ordering_key(&[b'x'; 1025]), ordering_key(&[b'y'; 1025])];
        assert!(hashes.iter().all(|hash| hash.len() == 64) && hashes[1] != hashes[2]);
    }
}
