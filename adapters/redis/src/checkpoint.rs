//! Checkpoints: how far a source without a broker has been read.

use async_trait::async_trait;
use onceward::adapter::{Checkpoint, CheckpointStore};
use onceward::{Error, ErrorKind, Scope};
use redis::Value;

use crate::command::codec::{ArgumentWriter, ReplyReader};
use crate::command::keyspace::ScopeTag;
use crate::error::invalid_reply;
use crate::store::RedisStore;

const LOAD: &str = "load a checkpoint from Redis";
const SAVE: &str = "save a checkpoint to Redis";

/// Checkpoints never expire. They are as durable as the server's persistence makes them.
#[async_trait]
impl CheckpointStore for RedisStore {
    async fn load_checkpoint(&self, scope: &Scope, source: &str) -> Result<Option<Checkpoint>, Error> {
        let key = self.executor.keyspace.checkpoint(ScopeTag::of(scope), source);
        self.executor.ensure_format().await?;
        match self.executor.run_command(LOAD, redis::cmd("GET").arg(&key), &key).await? {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => decode(&bytes).map(Some).ok_or_else(damaged),
            _ => Err(invalid_reply(LOAD)),
        }
    }

    async fn save_checkpoint(
        &self,
        scope: &Scope,
        source: &str,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        let key = self.executor.keyspace.checkpoint(ScopeTag::of(scope), source);
        self.executor.ensure_format().await?;
        self.executor.run_command(SAVE, redis::cmd("SET").arg(&key).arg(encode(checkpoint)), &key).await?;
        Ok(())
    }
}

fn damaged() -> Error {
    let context = "the stored checkpoint has a form that this version cannot read; a later version wrote it, or it is \
                   damaged. Update this program, or delete the checkpoint to read the source from its beginning";
    Error::new(ErrorKind::Corrupt, LOAD, context)
}

/// The form of a value, its first byte.
const FORM: u8 = 1;

pub(crate) fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut writer = ArgumentWriter::default();
    writer.u8(FORM);
    writer.u64(checkpoint.offset);
    writer.bytes(checkpoint.incarnation.as_bytes());
    writer.bytes(checkpoint.evidence.as_bytes());
    writer.as_bytes().to_vec()
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let mut reader = ReplyReader::new(bytes);
    if reader.u8().ok()? != FORM {
        return None;
    }
    let offset = reader.u64().ok()?;
    let (incarnation, evidence) = (reader.text().ok()?, reader.text().ok()?);
    reader.is_empty().then_some(Checkpoint { incarnation, offset, evidence })
}
