//! Stores what operators changed: a list of entries, and a set of the letters that are done with.
//!
//! ```text
//! #17                          first in the list, once entries were removed: how many
//! 1767225600000000:{"at":…}    an entry: when it was appended, in microseconds of the server's clock, and its text
//! ```

use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::micros;
use onceward::store::{AuditEntry, AuditLog, AuditRecord};
use onceward::{Error, Scope};
use redis::{Cmd, Value};

use crate::command::keyspace::ScopeTag;
use crate::error::invalid_reply;
use crate::store::RedisStore;

const APPEND: &str = "append to the audit trail in Redis";
const READ: &str = "read the audit trail in Redis";
const REMOVE: &str = "remove old entries of the audit trail in Redis";

const APPEND_SCRIPT: &str = "local clock = redis.call('TIME')
local now = string.format('%.0f:', clock[1] * 1000000 + clock[2])
for i = 1, #ARGV do redis.call('RPUSH', KEYS[1], now .. ARGV[i]) end";

/// The number of the first entry, and the entries. ARGV: only smaller numbers, at most so many.
const READ_SCRIPT: &str = "local head = redis.call('LINDEX', KEYS[1], 0)
local removed = head and string.match(head, '^#(%d+)$')
local skip = removed and 1 or 0
removed = tonumber(removed or 0)
local last = math.min(removed + redis.call('LLEN', KEYS[1]) - skip, tonumber(ARGV[1]) - 1)
local first = math.max(last - tonumber(ARGV[2]) + 1, removed + 1)
if first > last then return {'0'} end
local at = skip - removed - 1
local entries = redis.call('LRANGE', KEYS[1], first + at, last + at)
table.insert(entries, 1, string.format('%.0f', first))
return entries";

/// Entries are in the order of their times. ARGV: the least age in microseconds, at most so many.
///
/// Those of versions that kept no times are as old as the next one that has a time, and stay until there is one: it is looked for
/// among 20 times as many entries as may be removed.
const REMOVE_SCRIPT: &str = "local clock, limit = redis.call('TIME'), tonumber(ARGV[2])
local newest = clock[1] * 1000000 + clock[2] - ARGV[1]
local head = redis.call('LINDEX', KEYS[1], 0)
local removed = head and string.match(head, '^#(%d+)$')
local skip = removed and 1 or 0
local last = skip
for window = 0, 19 do
  local from, is_young = skip + window * limit, false
  local entries = redis.call('LRANGE', KEYS[1], from, from + limit - 1)
  for i = 1, #entries do
    local time = tonumber(string.match(entries[i], '^(%d+):'))
    is_young = time and time > newest
    if is_young then break end
    if time then last = math.min(from + i, skip + limit) end
  end
  if is_young or last > skip or #entries < limit then break end
end
if last == skip then return 0 end
redis.call('LTRIM', KEYS[1], last, -1)
redis.call('LPUSH', KEYS[1], string.format('#%.0f', (removed or 0) + last - skip))
return last - skip";

/// Neither key expires. They are as durable as the server's persistence makes them.
#[async_trait]
impl AuditLog for RedisStore {
    /// The entry first: a letter that counts as done with always has its entry.
    async fn append(&self, scope: &Scope, entries: &[AuditEntry]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let tag = ScopeTag::of(scope);
        self.executor.ensure_format().await?;
        let list = self.executor.keyspace.audit(tag);
        let mut push = redis::cmd("EVAL");
        push.arg(APPEND_SCRIPT).arg(1).arg(&list);
        for entry in entries {
            push.arg(&entry.text);
        }
        self.executor.run_command(APPEND, &push, &list).await?;
        let settled: Vec<_> = entries.iter().filter(|entry| entry.settles).collect();
        if settled.is_empty() {
            return Ok(());
        }
        let set = self.executor.keyspace.settled(tag);
        let mut add = redis::cmd("SADD");
        add.arg(&set);
        settled.iter().for_each(|entry| add_subject(&mut add, &entry.subject));
        self.executor.run_command(APPEND, &add, &set).await.map(drop)
    }

    async fn settled(&self, scope: &Scope, subjects: &[String]) -> Result<Vec<bool>, Error> {
        if subjects.is_empty() {
            return Ok(Vec::new());
        }
        self.executor.ensure_format().await?;
        let set = self.executor.keyspace.settled(ScopeTag::of(scope));
        let mut ask = redis::cmd("SMISMEMBER");
        ask.arg(&set);
        subjects.iter().for_each(|subject| add_subject(&mut ask, subject));
        let reply = self.executor.run_command(READ, &ask, &set).await?;
        let answers: Vec<bool> = redis::from_redis_value(reply).map_err(|_| invalid_reply(READ))?;
        if answers.len() == subjects.len() { Ok(answers) } else { Err(invalid_reply(READ)) }
    }

    /// The number of an entry is its place among all that were ever in the list, from 1.
    async fn read(&self, scope: &Scope, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        self.executor.ensure_format().await?;
        let list = self.executor.keyspace.audit(ScopeTag::of(scope));
        let mut ask = redis::cmd("EVAL");
        ask.arg(READ_SCRIPT).arg(1).arg(&list).arg(before.unwrap_or(u64::MAX)).arg(limit);
        let reply = self.executor.run_command(READ, &ask, &list).await?;
        let texts: Vec<String> = redis::from_redis_value(reply).map_err(|_| invalid_reply(READ))?;
        let mut texts = texts.into_iter();
        let first =
            texts.next().and_then(|first| first.parse::<u64>().ok()).ok_or_else(|| invalid_reply(READ))?;
        let numbered = (first..).zip(texts.map(without_time));
        let mut records: Vec<_> = numbered.map(|(number, text)| AuditRecord { number, text }).collect();
        records.reverse();
        Ok(records)
    }

    async fn remove_older(&self, scope: &Scope, age: Duration, limit: u32) -> Result<u64, Error> {
        self.executor.ensure_format().await?;
        let list = self.executor.keyspace.audit(ScopeTag::of(scope));
        let mut remove = redis::cmd("EVAL");
        remove.arg(REMOVE_SCRIPT).arg(1).arg(&list).arg(micros(age)).arg(limit);
        match self.executor.run_command(REMOVE, &remove, &list).await? {
            Value::Int(removed) => Ok(removed.unsigned_abs()),
            _ => Err(invalid_reply(REMOVE)),
        }
    }
}

/// The text of an entry.
fn without_time(entry: String) -> String {
    match entry.split_once(':') {
        Some((time, text)) if time.bytes().all(|byte| byte.is_ascii_digit()) => text.to_owned(),
        _ => entry,
    }
}

/// A hash, so that a subject takes 16 bytes however long it is.
fn add_subject(command: &mut Cmd, subject: &str) {
    command.arg(&blake3::hash(subject.as_bytes()).as_bytes()[..16]);
}
