//! Splits a batch into script calls: [`ScriptBatch`].

use redis::Cmd;

use crate::command::ScriptCommand;
use crate::command::codec::ArgumentWriter;
use crate::command::keyspace::{Keyspace, ScopeTag};
use crate::command::script::LuaScript;
use crate::config::RedisLayout;
use crate::network::node::ClusterNode;

/// The most keys in one script call, which blocks the server for a few milliseconds.
const MAX_KEYS: usize = 500;

/// A call takes no more items once they have this many bytes.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The longest single item; Redis accepts no argument beyond 512 MiB.
const MAX_ITEM_BYTES: usize = 256 * 1024 * 1024;

/// One call of a script, for some items of a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScriptCall {
    /// The positions of its items in the batch; never empty.
    pub(crate) positions: Vec<usize>,
    /// The bucket of its keys; in a cluster all are in one.
    pub(crate) bucket: u8,
    /// The node that is importing the slot, after an ASK redirection: the call must be preceded by ASKING.
    pub(crate) asking: Option<ClusterNode>,
    /// True if the server may not know the script: the call carries its text.
    pub(crate) with_text: bool,
    keys: Vec<Vec<u8>>,
    argument: ArgumentWriter,
    /// The directory of compact records; none in a cluster.
    directory: Option<Vec<u8>>,
    /// The layout of completions that it writes.
    layout: RedisLayout,
}

impl ScriptCall {
    /// The same call with the text of the script.
    pub(crate) fn with_text(self) -> Self {
        Self { with_text: true, ..self }
    }

    /// The same call to the node of an ASK redirection, which may not know the script.
    pub(crate) fn asking(self, node: ClusterNode) -> Self {
        Self { asking: Some(node), with_text: true, ..self }
    }

    /// The same call to the node that owns the slot.
    pub(crate) fn not_asking(&self) -> Self {
        Self { asking: None, ..self.clone() }
    }

    /// The first of its Redis keys, which are all in one slot.
    pub(crate) fn first_key(&self) -> &[u8] {
        self.keys.first().map_or(&[], Vec::as_slice)
    }

    /// `EVALSHA`, or `EVAL` with the text, which also makes the server cache the script.
    pub(crate) fn command(&self, script: &LuaScript) -> Cmd {
        let (name, text) =
            if self.with_text { ("EVAL", script.source) } else { ("EVALSHA", script.sha.as_str()) };
        let key_count = self.keys.len() + usize::from(self.directory.is_some());
        let mut command = Cmd::with_capacity(key_count + 6, key_count * 32 + self.argument.len());
        command.arg(name).arg(text).arg(key_count);
        for key in self.keys.iter().chain(&self.directory) {
            command.arg(key.as_slice());
        }
        command.arg(self.argument.as_bytes()).arg(self.keys.len());
        if self.layout == RedisLayout::Compact {
            command.arg("compact");
        }
        command
    }
}

/// A batch of commands of one kind, to be split into calls.
pub(crate) struct ScriptBatch<'b, C> {
    pub(crate) keyspace: &'b Keyspace,
    /// True in a cluster: the keys of a call must be in one bucket.
    pub(crate) by_bucket: bool,
    pub(crate) layout: RedisLayout,
    pub(crate) tag: ScopeTag,
    /// What precedes the items in the argument of each call.
    pub(crate) head: &'b [u8],
    pub(crate) items: &'b [C],
}

impl<C: ScriptCommand> ScriptBatch<'_, C> {
    /// Splits the items at `positions` into as few calls as possible. An item beyond [`MAX_ITEM_BYTES`] is left out.
    pub(crate) fn split(&self, positions: impl Iterator<Item = usize>) -> Vec<ScriptCall> {
        let mut positions: Vec<usize> = positions.collect();
        if self.by_bucket {
            positions.sort_by_key(|position| self.bucket(*position));
        }
        let mut calls: Vec<ScriptCall> = Vec::new();
        for position in positions {
            let mut item = ArgumentWriter::default();
            self.items[position].encode(&mut item);
            if item.len() > MAX_ITEM_BYTES {
                continue;
            }
            let bucket = self.bucket(position);
            let has_room = |call: &ScriptCall| {
                (call.bucket == bucket || !self.by_bucket)
                    && call.positions.len() < MAX_KEYS
                    && call.argument.len() + item.len() <= MAX_BYTES
            };
            if !calls.last().is_some_and(has_room) {
                let argument = ArgumentWriter::starting_with(self.head);
                let directory = (!self.by_bucket).then(|| self.keyspace.directory(self.tag));
                calls.push(ScriptCall {
                    bucket,
                    argument,
                    directory,
                    layout: self.layout,
                    ..ScriptCall::default()
                });
            }
            if let Some(call) = calls.last_mut() {
                call.positions.push(position);
                call.keys.push(self.keyspace.record(self.tag, self.items[position].key()));
                call.argument.append(item);
            }
        }
        calls
    }

    /// Splits `call` into one call for each item.
    pub(crate) fn split_singly(&self, call: &ScriptCall) -> impl Iterator<Item = ScriptCall> {
        call.positions.iter().flat_map(|position| self.split(std::iter::once(*position)))
    }

    fn bucket(&self, position: usize) -> u8 {
        Keyspace::bucket(self.items[position].key())
    }
}
