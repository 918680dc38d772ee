//! Message group and deduplication id of messages to a FIFO queue.

use bytes::Bytes;
use onceward::Outgoing;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_REASON};

/// True for the URL of a FIFO queue.
pub(crate) fn is_fifo(url: &str) -> bool {
    url.ends_with(".fifo")
}

/// Our own id, or the message's.
fn effective_id(outgoing: &Outgoing) -> &str {
    if outgoing.own_id.is_empty() { &outgoing.id } else { &outgoing.own_id }
}

/// The message group: the order key if it is short and plain, otherwise a hash of it, or of the id without an order
/// key.
pub(crate) fn group(outgoing: &Outgoing) -> String {
    build_group(outgoing.order_key.as_ref(), effective_id(outgoing))
}

fn build_group(order_key: Option<&Bytes>, id: &str) -> String {
    let Some(key) = order_key else { return hash_parts(&[b"id", id.as_bytes()]) };
    match std::str::from_utf8(key) {
        Ok(text) if (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            text.to_owned()
        }
        _ => hash_parts(&[b"order-key", key]),
    }
}

/// The deduplication id: the same for each repeat of a publish, and new for a redrive and for another payload. A
/// producer may give two messages the same id, or none, and the queue would silently drop the second.
pub(crate) fn deduplication_id(outgoing: &Outgoing) -> String {
    let header = |name: &str| {
        let found = outgoing.headers.iter().find(|(own, _)| own == name);
        found.map_or(&b""[..], |(_, value)| value)
    };
    // The reason distinguishes a dead letter from a redrive of the same generation.
    let (generation, reason) = (header(HEADER_GENERATION), header(HEADER_REASON));
    let payload: &[u8] = &outgoing.payload;
    hash_parts(&[
        outgoing.destination.as_bytes(),
        effective_id(outgoing).as_bytes(),
        generation,
        reason,
        payload,
    ])
}

/// Hashes length-prefixed parts.
fn hash_parts(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(generation: &'static str) -> Outgoing {
        Outgoing {
            destination: "http://h/dead.fifo".into(),
            id: "1".into(),
            own_id: "k-1".into(),
            headers: vec![(HEADER_GENERATION.into(), Bytes::from_static(generation.as_bytes()))],
            ..Outgoing::default()
        }
    }

    #[test]
    fn a_repeat_has_the_same_deduplication_id_and_a_redrive_another() {
        assert_eq!(deduplication_id(&letter("0")), deduplication_id(&letter("0")));
        assert_ne!(deduplication_id(&letter("0")), deduplication_id(&letter("1")));
        let mut dead = letter("0");
        dead.headers.push((HEADER_REASON.into(), Bytes::from_static(b"permanent")));
        assert_ne!(deduplication_id(&letter("0")), deduplication_id(&dead));
    }

    #[test]
    fn two_letters_of_messages_with_one_id_are_not_one() {
        let other = Outgoing { own_id: "k-2".into(), ..letter("0") };
        assert_ne!(deduplication_id(&letter("0")), deduplication_id(&other));
    }

    #[test]
    fn two_messages_with_one_id_or_without_any_are_not_one() {
        for id in ["", "7"] {
            let of = |payload: &'static str| {
                deduplication_id(&Outgoing { id: id.into(), payload: payload.into(), ..Outgoing::default() })
            };
            assert_ne!(of("pay 7"), of("pay 8"), "{id:?}");
            assert_eq!(of("pay 7"), of("pay 7"));
        }
    }

    #[test]
    fn a_plain_order_key_is_the_group_and_any_other_a_hash_of_it() {
        assert_eq!(build_group(Some(&Bytes::from_static(b"customer-7")), "1"), "customer-7");
        for odd in [&b""[..], b"\xff", b"a b", &[b'x'; 129]] {
            assert_eq!(build_group(Some(&Bytes::copy_from_slice(odd)), "1").len(), 64);
        }
        assert_ne!(build_group(None, "1"), build_group(None, "2"));
    }
}
