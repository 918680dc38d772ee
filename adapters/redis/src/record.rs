//! Commands that read records without changing them: [`ReadRecord`] and [`ReadState`].

use std::time::Duration;

use onceward::Key;
use onceward::store::{KeyRecord, KeyState, StoredResult};

use crate::command::ScriptCommand;
use crate::command::codec::{ArgumentWriter, InvalidReply, ReplyReader};
use crate::command::script::{self, LuaScript};

/// Reads the record of a key.
#[derive(Debug)]
pub(crate) struct ReadRecord(pub(crate) Key);

impl ScriptCommand for ReadRecord {
    type Reply = Option<KeyRecord>;
    const OPERATION: &'static str = "inspect keys in Redis";
    const NEEDS_REPLICAS: bool = false;

    fn script() -> &'static LuaScript {
        &script::INSPECT
    }

    fn key(&self) -> &Key {
        &self.0
    }

    fn encode(&self, _: &mut ArgumentWriter) {}

    fn decode(&self, tag: u8, reader: &mut ReplyReader<'_>) -> Result<Option<KeyRecord>, InvalidReply> {
        if tag == b'N' {
            return Ok(None);
        } else if tag != b'K' {
            return Err(InvalidReply);
        }
        let state = KeyState::from_code(reader.u8()?).ok_or(InvalidReply)?;
        let fence = reader.u64()?;
        let (attempts, lost, generation) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (holds, lease_left): (bool, Duration) = (reader.flag()?, reader.micros()?);
        let (first_age, last_age, expires_in) = (reader.micros()?, reader.micros()?, reader.millis()?);
        let reason = reader.optional_reason()?;
        let stored_bytes = reader.optional_size()?;
        let error = reader.optional_text()?;
        let stored = match stored_bytes {
            Some(bytes) => Some((StoredResult::of(reader.bytes()?), bytes)),
            None => None,
        };
        Ok(Some(KeyRecord {
            key: self.0,
            state,
            fence,
            attempts,
            lost,
            generation,
            lease_left: holds.then_some(lease_left),
            first_age,
            last_age,
            expires_in,
            reason,
            error,
            result_bytes: stored.and_then(|(parts, bytes)| parts.result_bytes(bytes)),
            trace: stored.and_then(|(parts, _)| parts.trace),
        }))
    }
}

/// Reads the state of a key only.
#[derive(Debug)]
pub(crate) struct ReadState(pub(crate) Key);

impl ScriptCommand for ReadState {
    type Reply = Option<KeyState>;
    const OPERATION: &'static str = "count keys in Redis";
    const NEEDS_REPLICAS: bool = false;

    fn script() -> &'static LuaScript {
        &script::STATES
    }

    fn key(&self) -> &Key {
        &self.0
    }

    fn encode(&self, _: &mut ArgumentWriter) {}

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<Option<KeyState>, InvalidReply> {
        match tag {
            b'-' => Ok(None),
            _ => KeyState::from_code(tag.wrapping_sub(b'0')).map(Some).ok_or(InvalidReply),
        }
    }
}
