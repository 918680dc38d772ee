//! Checks that Redis replies are read or refused, without a panic and without more memory than the reply has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onceward::Key;
use onceward_redis::fuzzing::{claim, decode_checkpoint, encode_checkpoint, record, state};

fuzz_target!(|reply: &[u8]| {
    let key = Key::from_bytes([7; 16]);
    if let Some((found, rest)) = record(key, reply) {
        assert!(rest.len() < reply.len());
        if let Some(record) = found {
            // Bytes that are no text become three bytes each.
            assert!(record.key == key && record.error.map_or(0, |error| error.len()) <= 3 * reply.len());
        }
        assert!(!reply.is_empty());
    }
    if let Some((_, rest)) = claim(key, reply) {
        assert!(rest.len() < reply.len());
    }
    let _ = state(key, reply);
    if let Some(checkpoint) = decode_checkpoint(reply) {
        assert_eq!(encode_checkpoint(&checkpoint), reply);
    }
});
