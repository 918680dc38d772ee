//! Stores what operators changed: a list of entries, and a set of the letters that are done with.

use async_trait::async_trait;
use onceward::store::{AuditEntry, AuditLog, AuditRecord};
use onceward::{Error, Scope};
use redis::{Cmd, Value};

use crate::command::keyspace::ScopeTag;
use crate::error::invalid_reply;
use crate::store::RedisStore;

const APPEND: &str = "append to the audit trail in Redis";
const READ: &str = "read the audit trail in Redis";

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
        let mut push = redis::cmd("RPUSH");
        push.arg(&list);
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

    /// The number of an entry is its place in the list, from 1.
    async fn read(&self, scope: &Scope, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        self.executor.ensure_format().await?;
        let list = self.executor.keyspace.audit(ScopeTag::of(scope));
        let length = match self.executor.run_command(READ, redis::cmd("LLEN").arg(&list), &list).await? {
            Value::Int(length) => length.unsigned_abs(),
            _ => return Err(invalid_reply(READ)),
        };
        let end = before.map_or(length, |before| before.saturating_sub(1).min(length));
        let start = end.saturating_sub(limit.into());
        if start == end {
            return Ok(Vec::new());
        }
        let mut range = redis::cmd("LRANGE");
        range.arg(&list).arg(start).arg(end - 1);
        let reply = self.executor.run_command(READ, &range, &list).await?;
        let texts: Vec<String> = redis::from_redis_value(reply).map_err(|_| invalid_reply(READ))?;
        let numbered = (start + 1..).zip(texts).map(|(number, text)| AuditRecord { number, text });
        let mut records: Vec<_> = numbered.collect();
        records.reverse();
        Ok(records)
    }
}

/// A hash, so that a subject takes 16 bytes however long it is.
fn add_subject(command: &mut Cmd, subject: &str) {
    command.arg(&blake3::hash(subject.as_bytes()).as_bytes()[..16]);
}
