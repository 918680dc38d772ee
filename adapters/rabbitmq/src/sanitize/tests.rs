//! Tests of the [`Sanitizer`] on byte streams.

use std::sync::Arc;

use proptest::prelude::*;

use super::defects::Defects;
use super::frames::{Sanitizer, frame};

const BASIC_RETURN: [u8; 4] = [0, 60, 0, 50];
const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];

fn build_frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xce);
    bytes
}

fn deliver(channel: u16, tag: u64, routing_key: &[u8]) -> Vec<u8> {
    let mut payload = BASIC_DELIVER.to_vec();
    payload.extend(b"\x01c");
    payload.extend(tag.to_be_bytes());
    payload.extend(b"\x00\x00");
    payload.push(routing_key.len() as u8);
    payload.extend(routing_key);
    build_frame(frame::METHOD, channel, &payload)
}

/// A content header, of three bytes, with only a message id.
fn header(channel: u16, id: &[u8]) -> Vec<u8> {
    header_of(3, channel, id)
}

fn header_of(size: u64, channel: u16, id: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend(size.to_be_bytes());
    payload.extend((1_u16 << 7).to_be_bytes());
    payload.push(id.len() as u8);
    payload.extend(id);
    build_frame(frame::HEADER, channel, &payload)
}

fn sanitize(bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Arc<Defects>) {
    sanitize_with(131_072, bytes, pieces)
}

fn sanitize_with(frame_max: usize, bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Arc<Defects>) {
    let defects = Arc::new(Defects::default());
    let mut sanitizer = Sanitizer::new(Arc::clone(&defects), frame_max);
    let (mut rest, mut out) = (bytes, Vec::new());
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let space = sanitizer.free_space();
        let size = (*sizes.next().unwrap()).min(rest.len()).min(space.len());
        space[..size].copy_from_slice(&rest[..size]);
        rest = &rest[size..];
        sanitizer.filled(size).unwrap();
        let mut piece = [0; 50];
        loop {
            match sanitizer.take(&mut piece) {
                0 => break,
                taken => out.extend(&piece[..taken]),
            }
        }
    }
    (out, defects)
}

#[test]
fn unreadable_bytes_are_replaced_and_recorded_for_their_delivery() {
    let bytes = |id: &[u8], key: &[u8]| {
        [
            deliver(1, 7, b"k"),
            header(1, b"good"),
            build_frame(3, 1, b"\xff\xfe\xfd"),
            deliver(2, 7, key),
            header(2, id),
        ]
        .concat()
    };
    let (out, defects) = sanitize(&bytes(b"a\xff\xfeb", b"k\xff"), &[1000]);
    assert_eq!(out, bytes(b"a??b", b"k?"));
    assert_eq!(defects.take(1, 7), None);
    assert_eq!(defects.take(2, 7), Some("the routing key is not UTF-8"));
    assert_eq!(defects.take(2, 7), None);
    let (_, defects) = sanitize(&bytes(b"\xff", b"k"), &[1000]);
    assert_eq!(defects.take(2, 7), Some("the message id is not UTF-8"));
}

#[test]
fn the_content_of_a_returned_message_is_dropped() {
    let returned = build_frame(frame::METHOD, 1, &BASIC_RETURN);
    let mut head = header(1, b"id");
    let other = [deliver(2, 1, b"k"), header(2, b"o"), build_frame(3, 2, b"its")].concat();
    let before = [returned.clone(), head.clone(), other.clone()].concat();
    let body = [build_frame(3, 1, b"a"), build_frame(3, 1, b"bc")].concat();
    let bytes = [before, body, deliver(1, 1, b"k"), header(1, b"n"), build_frame(3, 1, b"abc")].concat();
    // The body size in the header is 0 now.
    head[7 + 4..7 + 12].fill(0);
    let expected = [returned, head, other, deliver(1, 1, b"k"), header(1, b"n"), build_frame(3, 1, b"abc")];
    for pieces in [&[1000][..], &[1], &[3, 7, 11]] {
        assert_eq!(sanitize(&bytes, pieces).0, expected.concat(), "{pieces:?}");
    }
}

#[test]
fn a_new_subscription_forgets_the_channels_defects() {
    let (_, defects) = sanitize(&[deliver(1, 7, b"\xff"), deliver(2, 7, b"\xff")].concat(), &[1000]);
    defects.start_subscription(1, 10);
    assert_eq!(defects.take(1, 7), None);
    assert!(defects.take(2, 7).is_some());
}

#[test]
fn oversize_headers_are_dropped_and_recorded_as_a_defect() {
    let id = [b'x'; 200];
    let large = {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(3_u64.to_be_bytes());
        payload.extend((1_u16 << 13).to_be_bytes());
        payload.extend(5000_u32.to_be_bytes());
        payload.extend([0; 5000]);
        build_frame(frame::HEADER, 1, &payload)
    };
    let rest =
        [build_frame(3, 1, b"abc"), deliver(1, 8, b"k"), header(1, &id), build_frame(3, 1, b"def")].concat();
    let bytes = [deliver(1, 7, b"k"), large, rest.clone()].concat();
    let empty = [&[0, 60, 0, 0][..], &3_u64.to_be_bytes(), &[0, 0]].concat();
    let expected = [deliver(1, 7, b"k"), build_frame(frame::HEADER, 1, &empty), rest].concat();
    for pieces in [&[10_000][..], &[1], &[3, 7, 11], &[700]] {
        let (out, defects) = sanitize_with(4096, &bytes, pieces);
        assert_eq!(out, expected, "{pieces:?}");
        assert!(defects.take(1, 7).unwrap().contains("frame_max"));
        assert_eq!(defects.take(1, 8), None);
    }
}

#[test]
fn oversize_frames_and_floods_are_errors() {
    let is_refused = |bytes: &[u8]| {
        let defects = Arc::new(Defects::default());
        defects.start_subscription(1, 10);
        let mut sanitizer = Sanitizer::new(defects, 4096);
        bytes.chunks(1000).any(|piece| {
            sanitizer.free_space()[..piece.len()].copy_from_slice(piece);
            sanitizer.filled(piece.len()).is_err()
        })
    };
    let one = [deliver(1, 1, b"k"), header(1, b"i"), build_frame(3, 1, b"abc")].concat();
    assert!(!is_refused(&one));
    assert!(is_refused(&[deliver(1, 1, b"k"), header(1, b"i"), build_frame(3, 1, &[0; 4096])].concat()));
    assert!(is_refused(&build_frame(frame::METHOD, 0, &[0; 4096])));
    assert!(is_refused(&build_frame(8, 0, &[0; 4096])), "a heartbeat");
    assert!(is_refused(&deliver(1, 1, b"k").repeat(2)));
    assert!(!is_refused(&one.repeat(1020)) && is_refused(&one.repeat(1021)), "at most ten are unsettled");
}

#[test]
fn bytes_that_are_not_amqp_fail_or_pass() {
    let mut sanitizer = Sanitizer::new(Arc::default(), 131_072);
    let large = [&[frame::HEADER, 0, 1][..], &[0xff; 4]].concat();
    sanitizer.free_space()[..7].copy_from_slice(&large);
    assert!(sanitizer.filled(7).is_err());
    assert_eq!(sanitize(b"AMQP\x00\x00\x09\x01 whatever", &[3]).0, b"AMQP\x00\x00\x09\x01 whatever");
}

proptest! {
    #[test]
    fn frames_pass_unchanged_however_they_are_split(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
        pieces in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let mut bytes = Vec::new();
        for (tag, body) in bodies.iter().enumerate() {
            bytes.extend(deliver(3, tag as u64, b"key"));
            bytes.extend(header_of(body.len() as u64, 3, b"id"));
            if !body.is_empty() {
                bytes.extend(build_frame(3, 3, body));
            }
            bytes.extend(build_frame(8, 0, b""));
        }
        let (out, defects) = sanitize(&bytes, &pieces);
        prop_assert_eq!(out, bytes);
        prop_assert!((0..bodies.len()).all(|tag| defects.take(3, tag as u64).is_none()));
    }
}
