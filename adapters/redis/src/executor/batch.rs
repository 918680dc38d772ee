//! Batches cut into calls: [`Groups`].

use redis::Cmd;

use crate::command::Ask;
use crate::command::codec::Writer;
use crate::command::keyspace::{Keyspace, ScopeTag};
use crate::command::script::Script;
use crate::network::Node;

/// Keys in one call of a script. The server does nothing else meanwhile, for a few milliseconds.
const MAX_KEYS: usize = 500;

/// A call is closed once its items have this many bytes.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The longest single item; Redis takes no argument beyond 512 MiB.
const MAX_ITEM_BYTES: usize = 256 * 1024 * 1024;

/// Items that one call of a script takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// Their places in the batch; never none.
    pub(crate) places: Vec<usize>,
    /// What they have in common in a cluster.
    pub(crate) bucket: u8,
    /// The node that has them although their slot is still another's.
    pub(crate) asking: Option<Node>,
    /// The server does not know the script yet.
    pub(crate) with_text: bool,
    names: Vec<Vec<u8>>,
    payload: Writer,
}

impl Group {
    /// The same, with the script's text.
    pub(crate) fn with_text(self) -> Self {
        Self { with_text: true, ..self }
    }

    /// The same, for a node that another one has named for it; that may not know the script.
    pub(crate) fn asking(self, node: Node) -> Self {
        Self { asking: Some(node), with_text: true, ..self }
    }

    /// The same, for the node that has its slot.
    pub(crate) fn not_asking(&self) -> Self {
        Self { asking: None, ..self.clone() }
    }

    /// The Redis key of one of them: all are in its slot.
    pub(crate) fn name(&self) -> &[u8] {
        self.names.first().map_or(&[], Vec::as_slice)
    }

    /// The call, by the script's hash, or with its text, from which the server knows it by its hash too.
    pub(crate) fn command(&self, script: &Script) -> Cmd {
        let (name, text) =
            if self.with_text { ("EVAL", script.source) } else { ("EVALSHA", script.sha.as_str()) };
        let mut command =
            Cmd::with_capacity(self.names.len() + 4, self.names.len() * 32 + self.payload.len());
        command.arg(name).arg(text).arg(self.names.len());
        for name in &self.names {
            command.arg(name.as_slice());
        }
        command.arg(self.payload.as_bytes());
        command
    }
}

/// A batch that is to be cut into calls.
pub(crate) struct Groups<'b, A> {
    pub(crate) space: &'b Keyspace,
    /// A call may only have keys of one bucket.
    pub(crate) by_bucket: bool,
    pub(crate) tag: ScopeTag,
    pub(crate) head: &'b [u8],
    pub(crate) items: &'b [A],
}

impl<A: Ask> Groups<'_, A> {
    /// The items at `places`, cut into as few calls as may be. An item that is too large is in none.
    pub(crate) fn of(&self, places: impl Iterator<Item = usize>) -> Vec<Group> {
        let mut places: Vec<usize> = places.collect();
        if self.by_bucket {
            places.sort_by_key(|place| self.bucket(*place));
        }
        let mut groups: Vec<Group> = Vec::new();
        for place in places {
            let mut item = Writer::default();
            self.items[place].write(&mut item);
            if item.len() > MAX_ITEM_BYTES {
                continue;
            }
            let bucket = self.bucket(place);
            let has_room = |group: &Group| {
                (group.bucket == bucket || !self.by_bucket)
                    && group.places.len() < MAX_KEYS
                    && group.payload.len() + item.len() <= MAX_BYTES
            };
            if !groups.last().is_some_and(has_room) {
                groups.push(Group { bucket, payload: Writer::starting_with(self.head), ..Group::default() });
            }
            if let Some(group) = groups.last_mut() {
                group.places.push(place);
                group.names.push(self.space.record(self.tag, self.items[place].key()));
                group.payload.append(item);
            }
        }
        groups
    }

    /// The items of `group`, each in a call of its own.
    pub(crate) fn alone(&self, group: &Group) -> impl Iterator<Item = Group> {
        group.places.iter().flat_map(|place| self.of(std::iter::once(*place)))
    }

    fn bucket(&self, place: usize) -> u8 {
        Keyspace::bucket(self.items[place].key())
    }
}
