//! Lists and statistics: a walk over the names of all Redis keys, because Redis has no index of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use onceward::store::{KeyRecord, KeyStats, ListQuery};
use onceward::{Error, ErrorKind, Key, Scope};
use redis::{Cmd, RedisResult, Value};

use crate::command::keyspace::ScopeTag;
use crate::command::{Inspect, State};
use crate::error::{garbled, store_error};
use crate::executor::Caller;
use crate::network::connection::Link;

/// Names that one step goes through. The server does nothing else meanwhile: some 100 µs.
const STEP: u64 = 1_000;

const LIST: &str = "list keys in Redis";
const COUNT: &str = "count keys in Redis";

impl Caller {
    /// Keys that come or go meanwhile may be listed or not.
    pub(crate) async fn list(&self, scope: &Scope, query: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let tag = ScopeTag::of(scope);
        let mut found: BTreeMap<Key, KeyRecord> = BTreeMap::new();
        let mut walk = Walk::new(self, tag, LIST).await?;
        while let Some(mut keys) = walk.next().await? {
            let last = (found.len() >= limit).then(|| found.last_key_value().map(|(key, _)| *key)).flatten();
            keys.retain(|key| {
                query.after.is_none_or(|after| *key > after) && last.is_none_or(|last| *key < last)
            });
            let asks: Vec<Inspect> = keys.into_iter().map(Inspect).collect();
            for record in self.ask_in(tag, &[], &asks).await {
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

    /// Keys that come or go meanwhile may be counted or not; while Redis resizes its table, some may count twice.
    pub(crate) async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        let tag = ScopeTag::of(scope);
        let mut stats = KeyStats::default();
        let mut walk = Walk::new(self, tag, COUNT).await?;
        while let Some(keys) = walk.next().await? {
            let asks: Vec<State> = keys.into_iter().map(State).collect();
            for state in self.ask_in(tag, &[], &asks).await {
                if let Some(state) = state? {
                    stats.set(state, stats.get(state) + 1);
                }
            }
        }
        Ok(stats)
    }
}

/// A walk over the keys of one scope, a step at a time.
struct Walk<'c> {
    caller: &'c Caller,
    tag: ScopeTag,
    operation: &'static str,
    links: Vec<Arc<Link>>,
    cursor: Option<u64>,
    seen: u64,
}

impl<'c> Walk<'c> {
    async fn new(caller: &'c Caller, tag: ScopeTag, operation: &'static str) -> Result<Self, Error> {
        caller.format.get_or_try_init(|| caller.agree_on_format()).await?;
        let links = caller.network.all(operation).await?.into_iter().map(|(_, link)| link).collect();
        Ok(Self { caller, tag, operation, links, cursor: None, seen: 0 })
    }

    /// The keys of the next step, perhaps none; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Key>>, Error> {
        let Some(link) = self.links.last() else { return Ok(None) };
        if self.seen >= self.caller.settings.scan_limit {
            return Err(Error::new(
                ErrorKind::Unsupported,
                self.operation,
                format!(
                    "the server holds more than {} keys, which scan_limit allows to go through; raise it, or inspect single keys",
                    self.caller.settings.scan_limit
                ),
            ));
        }
        let mut scan = redis::cmd("SCAN");
        scan.arg(self.cursor.unwrap_or(0)).arg("MATCH").arg(self.caller.space.pattern(self.tag));
        scan.arg("COUNT").arg(STEP);
        let reply = send_to(self.operation, link, scan).await?;
        let (cursor, names) = step(reply).map_err(|error| store_error(self.operation, error))?;
        self.seen += STEP;
        self.cursor = Some(cursor);
        if cursor == 0 {
            self.links.pop();
            self.cursor = None;
        }
        let mut keys: Vec<Key> =
            names.iter().filter_map(|name| self.caller.space.parse(self.tag, name)).collect();
        keys.sort_unstable();
        keys.dedup();
        Ok(Some(keys))
    }
}

/// Sends a command that is about no key of ours.
pub(crate) async fn send_to(operation: &'static str, link: &Link, command: Cmd) -> Result<Value, Error> {
    let mut pipeline = redis::pipe();
    pipeline.add_command(command);
    match link.send_all(operation, pipeline).await?.pop() {
        Some(reply) => reply.map_err(|error| store_error(operation, error)),
        None => Err(garbled(operation)),
    }
}

fn step(reply: Value) -> RedisResult<(u64, Vec<Vec<u8>>)> {
    Ok(redis::from_redis_value(reply)?)
}
