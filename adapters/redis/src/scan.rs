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
}

impl<'e> KeyScan<'e> {
    async fn new(
        executor: &'e ScriptExecutor,
        tag: ScopeTag,
        operation: &'static str,
    ) -> Result<Self, Error> {
        executor.ensure_format().await?;
        let servers = executor.network.all(operation).await?.into_iter().map(|(_, server)| server).collect();
        Ok(Self { executor, tag, operation, servers, cursor: None, scanned: 0 })
    }

    /// The keys of the next step, which may be empty; `None` at the end.
    ///
    /// # Errors
    /// A server failed, or [`ErrorKind::Unsupported`] beyond `scan_limit`.
    async fn next(&mut self) -> Result<Option<Vec<Key>>, Error> {
        let Some(server) = self.servers.last() else { return Ok(None) };
        if self.scanned >= self.executor.options.scan_limit {
            return Err(Error::new(
                ErrorKind::Unsupported,
                self.operation,
                format!(
                    "the server holds more than {} keys, the scan_limit; raise it, or inspect single keys",
                    self.executor.options.scan_limit
                ),
            ));
        }
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
