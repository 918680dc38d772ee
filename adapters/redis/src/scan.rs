//! Lists and statistics: a scan of all Redis keys, because Redis has no index of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use onceward::store::{KeyRecord, KeyStats, ListQuery};
use onceward::{Error, ErrorKind, Key, Scope};
use redis::{Cmd, RedisResult, Value};

use crate::command::keyspace::ScopeTag;
use crate::error::{classify, invalid_reply};
use crate::executor::ScriptExecutor;
use crate::network::server::RedisServer;
use crate::record::{ReadRecord, ReadState};

/// The keys of one step, which blocks the server for some 100 µs.
const STEP: u64 = 1_000;

/// The keys of compact records that are read together.
const SLICE_STEP: usize = 1_000;

const LIST: &str = "list keys in Redis";
const COUNT: &str = "count keys in Redis";

impl ScriptExecutor {
    /// Keys that are created or deleted in the meantime may be missing.
    pub(crate) async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let tag = ScopeTag::of(scope);
        let mut found: BTreeMap<Key, KeyRecord> = BTreeMap::new();
        let mut scan = KeyScan::new(self, tag, LIST).await?;
        while let Some(mut keys) = scan.next().await? {
            let last = (found.len() >= limit).then(|| found.last_key_value().map(|(key, _)| *key)).flatten();
            keys.retain(|key| {
                query.after.is_none_or(|after| *key > after) && last.is_none_or(|last| *key < last)
            });
            let reads: Vec<ReadRecord> = keys.into_iter().map(ReadRecord).collect();
            for record in self.execute_in(tag, &[], &reads).await {
                if let Some(record) = record?
                    && query.state.is_none_or(|state| record.state == state)
                {
                    found.insert(record.key, record);
                }
            }
            while found.len() > limit {
                found.pop_last();
            }
        }
        Ok(found.into_values().collect())
    }

    /// Keys that are created or deleted in the meantime may not be counted; while Redis resizes its table, a key may be
    /// counted twice.
    pub(crate) async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        let tag = ScopeTag::of(scope);
        let mut stats = KeyStats::default();
        let mut scan = KeyScan::new(self, tag, COUNT).await?;
        while let Some(keys) = scan.next().await? {
            let reads: Vec<ReadState> = keys.into_iter().map(ReadState).collect();
            for state in self.execute_in(tag, &[], &reads).await {
                if let Some(state) = state? {
                    stats.set(state, stats.get(state) + 1);
                }
            }
        }
        Ok(stats)
    }
}

/// A scan of the keys of one scope.
struct KeyScan<'e> {
    executor: &'e ScriptExecutor,
    tag: ScopeTag,
    operation: &'static str,
    /// The servers that are still to be scanned, the current one last.
    servers: Vec<Arc<RedisServer>>,
    cursor: Option<u64>,
    scanned: u64,
    /// The slices of compact records that have been read.
    slices: u32,
}

impl<'e> KeyScan<'e> {
    async fn new(
        executor: &'e ScriptExecutor,
        tag: ScopeTag,
        operation: &'static str,
    ) -> Result<Self, Error> {
        executor.ensure_format().await?;
        let servers = executor.network.all(operation).await?.into_iter().map(|(_, server)| server).collect();
        Ok(Self { executor, tag, operation, servers, cursor: None, scanned: 0, slices: 0 })
    }

    /// The keys of the next step, which may be empty; `None` at the end.
    ///
    /// # Errors
    /// A server failed, or [`ErrorKind::Unsupported`] beyond `scan_limit`.
    async fn next(&mut self) -> Result<Option<Vec<Key>>, Error> {
        let Some(server) = self.servers.last() else { return self.next_slices().await };
        self.check_limit()?;
        let mut scan = redis::cmd("SCAN");
        scan.arg(self.cursor.unwrap_or(0)).arg("MATCH").arg(self.executor.keyspace.pattern(self.tag));
        scan.arg("COUNT").arg(STEP);
        let reply = send_to(self.operation, server, scan).await?;
        let (cursor, names) = parse_step(reply).map_err(|error| classify(self.operation, error))?;
        self.scanned += STEP;
        self.cursor = Some(cursor);
        if cursor == 0 {
            self.servers.pop();
            self.cursor = None;
        }
        let mut keys: Vec<Key> =
            names.iter().filter_map(|name| self.executor.keyspace.parse(self.tag, name)).collect();
        keys.sort_unstable();
        keys.dedup();
        Ok(Some(keys))
    }

    /// The keys in the next slices of compact records. A slice that is added meanwhile has a larger number.
    async fn next_slices(&mut self) -> Result<Option<Vec<Key>>, Error> {
        if self.executor.network.is_cluster() {
            return Ok(None);
        }
        let name = self.executor.keyspace.directory(self.tag);
        let read = redis::cmd("GET").arg(&name).clone();
        let slices = match self.executor.run_command(self.operation, &read, &name).await? {
            Value::Nil => 0,
            Value::BulkString(directory) => {
                slice_count(&directory).ok_or_else(|| unreadable(self.operation))?
            }
            _ => return Err(invalid_reply(self.operation)),
        };
        if self.slices >= slices {
            return Ok(None);
        }
        self.check_limit()?;
        let mut keys = Vec::new();
        while self.slices < slices && keys.len() < SLICE_STEP {
            let name = self.executor.keyspace.slice(self.tag, self.slices);
            let read = redis::cmd("HGETALL").arg(&name).clone();
            let reply = self.executor.run_command(self.operation, &read, &name).await?;
            let fields: Vec<(Vec<u8>, Vec<u8>)> =
                redis::from_redis_value(reply).map_err(|_| invalid_reply(self.operation))?;
            keys.extend(fields.iter().filter_map(|(field, value)| beginning_of_key(field, value)));
            self.slices += 1;
        }
        self.scanned += keys.len() as u64;
        keys.sort_unstable();
        Ok(Some(keys))
    }

    fn check_limit(&self) -> Result<(), Error> {
        if self.scanned < self.executor.options.scan_limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            self.operation,
            format!(
                "the server holds more than {} keys, the scan_limit; raise it, or inspect single keys",
                self.executor.options.scan_limit
            ),
        ))
    }
}

/// The number of slices, from their directory; `None` if it has a form that this version cannot read.
fn slice_count(directory: &[u8]) -> Option<u32> {
    let bytes = directory.strip_prefix(b"C").filter(|rest| rest.len() == 15)?;
    bytes.first_chunk().copied().map(u32::from_be_bytes)
}

/// What a compact record keeps of its key; the rest is zero. The record is found by it.
fn beginning_of_key(field: &[u8], value: &[u8]) -> Option<Key> {
    let mut bytes = [0; 16];
    bytes.get_mut(..8)?.copy_from_slice(field.get(..8)?);
    bytes[8] = value.get(4)? & 0x0f;
    Some(Key::from_bytes(bytes))
}

fn unreadable(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        operation,
        "the directory of compact records has a form that this version cannot read; a later version wrote it, or it is damaged. \
         Update this program",
    )
}

/// Sends a command without keys to one server.
///
/// # Errors
/// The server or its connection failed.
pub(crate) async fn send_to(
    operation: &'static str,
    server: &RedisServer,
    command: Cmd,
) -> Result<Value, Error> {
    let mut pipeline = redis::pipe();
    pipeline.add_command(command);
    match server.connection.send_all(operation, pipeline).await?.pop() {
        Some(reply) => reply.map_err(|error| classify(operation, error)),
        None => Err(invalid_reply(operation)),
    }
}

fn parse_step(reply: Value) -> RedisResult<(u64, Vec<Vec<u8>>)> {
    Ok(redis::from_redis_value(reply)?)
}
