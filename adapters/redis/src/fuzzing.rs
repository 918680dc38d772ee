//! Private functions that the fuzz targets call; built for them and for tests only.

use onceward::store::{Claim, ClaimRequest, KeyRecord, OwnerToken};
use onceward::{Checkpoint, Key};

use crate::ask::{Ask, Inspect, State};
use crate::checkpoint;
use crate::wire::Reader;

/// Reads one answer of a reply as the store does; the rest of the reply.
fn read<'r, A: Ask>(item: &A, reply: &'r [u8]) -> Option<(A::Answer, &'r [u8])> {
    let mut reader = Reader::new(reply);
    let tag = reader.u8().ok()?;
    let answer = item.read(tag, &mut reader).ok()?;
    Some((answer, reader.rest()))
}

/// A record, as `inspect` and `list` read it.
pub fn record(key: Key, reply: &[u8]) -> Option<(Option<KeyRecord>, &[u8])> {
    read(&Inspect(key), reply)
}

/// The answer to a claim.
pub fn claim(key: Key, reply: &[u8]) -> Option<(Claim, &[u8])> {
    let owner = OwnerToken::from_bytes([1; 16]);
    read(&ClaimRequest { key, owner, fingerprint: None, generation: 0 }, reply)
}

/// A state, as `stats` counts it: whether it can be read.
pub fn state(key: Key, reply: &[u8]) -> bool {
    read(&State(key), reply).is_some()
}

/// A kept offset.
pub fn decode_checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    checkpoint::decode(bytes)
}

/// The bytes of a kept offset.
pub fn encode_checkpoint(checkpoint: &Checkpoint) -> Vec<u8> {
    checkpoint::encode(checkpoint)
}
