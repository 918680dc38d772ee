//! Entry points of the fuzz targets; built for them and for tests only.

use onceward::Key;
use onceward::adapter::Checkpoint;
use onceward::store::{Claim, ClaimRequest, KeyRecord, OwnerToken};

use crate::checkpoint;
use crate::command::ScriptCommand;
use crate::command::codec::ReplyReader;
use crate::record::{ReadRecord, ReadState};

/// Decodes one result of a reply as the store does, and returns it with the rest of the reply.
fn decode<'r, C: ScriptCommand>(item: &C, reply: &'r [u8]) -> Option<(C::Reply, &'r [u8])> {
    let mut reader = ReplyReader::new(reply);
    let tag = reader.u8().ok()?;
    let result = item.decode(tag, &mut reader).ok()?;
    Some((result, reader.rest()))
}

/// Decodes a record, as `inspect` and `list` do.
pub fn record(key: Key, reply: &[u8]) -> Option<(Option<KeyRecord>, &[u8])> {
    decode(&ReadRecord(key), reply)
}

/// Decodes the result of a claim.
pub fn claim(key: Key, reply: &[u8]) -> Option<(Claim, &[u8])> {
    let owner = OwnerToken::from_bytes([1; 16]);
    decode(&ClaimRequest { key, owner, fingerprint: None, generation: 0 }, reply)
}

/// True if `reply` is a state, as `stats` counts it.
pub fn state(key: Key, reply: &[u8]) -> bool {
    decode(&ReadState(key), reply).is_some()
}

/// Decodes a checkpoint.
pub fn decode_checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    checkpoint::decode(bytes)
}

/// Encodes a checkpoint.
pub fn encode_checkpoint(checkpoint: &Checkpoint) -> Vec<u8> {
    checkpoint::encode(checkpoint)
}
