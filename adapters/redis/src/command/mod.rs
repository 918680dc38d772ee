//! Script commands: how each item of a batch is encoded for its script, and its reply decoded: [`ScriptCommand`].

pub(crate) mod claims;
pub(crate) mod codec;
pub(crate) mod keyspace;
pub(crate) mod operator;
pub(crate) mod script;

use onceward::Key;

use crate::command::codec::{ArgumentWriter, InvalidReply, ReplyReader};
use crate::command::script::LuaScript;

/// One item of a batch.
pub(crate) trait ScriptCommand: Sync {
    type Reply: Send;

    /// The operation's name, for errors.
    const OPERATION: &'static str;

    /// True if the write must reach the replicas before it is reported.
    const NEEDS_REPLICAS: bool;

    fn script() -> &'static LuaScript;

    fn key(&self) -> &Key;

    fn encode(&self, writer: &mut ArgumentWriter);

    /// Decodes a reply that begins with `tag`.
    ///
    /// # Errors
    /// The reply is not one of this command's.
    fn decode(&self, tag: u8, reader: &mut ReplyReader<'_>) -> Result<Self::Reply, InvalidReply>;
}

fn decode_bool(tag: u8) -> Result<bool, InvalidReply> {
    match tag {
        b'Y' => Ok(true),
        b'N' => Ok(false),
        _ => Err(InvalidReply),
    }
}
