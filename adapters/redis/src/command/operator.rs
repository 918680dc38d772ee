//! Commands of an operator: redrive and forget.

use onceward::Key;
use onceward::store::{Redrive, RedriveRequest};

use crate::command::codec::{ArgumentWriter, InvalidReply, ReplyReader};
use crate::command::script::{self, LuaScript};
use crate::command::{ScriptCommand, decode_bool};

impl ScriptCommand for RedriveRequest {
    type Reply = Redrive;
    const OPERATION: &'static str = "redrive keys in Redis";
    const NEEDS_REPLICAS: bool = true;

    fn script() -> &'static LuaScript {
        &script::REDRIVE
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        writer.u32(self.generation);
        // 0: there is no next one.
        writer.u32(self.next_generation().unwrap_or(0));
        writer.duration(self.ttl);
    }

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<Redrive, InvalidReply> {
        match tag {
            b'O' => match self.next_generation() {
                Some(generation) => Ok(Redrive::Open { generation }),
                None => Err(InvalidReply),
            },
            b'R' => Ok(Redrive::Resolved),
            b'N' => Ok(Redrive::NotDead),
            _ => Err(InvalidReply),
        }
    }
}

/// Forgets a key.
#[derive(Debug)]
pub(crate) struct Forget(pub(crate) Key);

impl ScriptCommand for Forget {
    type Reply = bool;
    const OPERATION: &'static str = "forget keys in Redis";
    const NEEDS_REPLICAS: bool = true;

    fn script() -> &'static LuaScript {
        &script::FORGET
    }

    fn key(&self) -> &Key {
        &self.0
    }

    fn encode(&self, _: &mut ArgumentWriter) {}

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<bool, InvalidReply> {
        decode_bool(tag)
    }
}
