//! The version of the keys in the server, which a version that cannot read them refuses.

use onceward::adapter::KEY_FORMAT;
use onceward::{Error, ErrorKind};
use redis::Value;

use crate::config::RedisLayout;
use crate::error::invalid_reply;
use crate::executor::ScriptExecutor;

impl ScriptExecutor {
    /// Checks once that the keys in the server have this version's format; writes its version if the server has no version.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if they have another format.
    pub(crate) async fn ensure_format(&self) -> Result<(), Error> {
        self.format.get_or_try_init(|| self.check_format()).await.copied()
    }

    /// As [`ensure_format`](Self::ensure_format), but asks the server each time.
    pub(crate) async fn check_format(&self) -> Result<(), Error> {
        const OPERATION: &str = "read the format of the keys in Redis";
        let key = self.keyspace.format();
        // The version of records and key names that this version reads and writes, and that of key hashes.
        let plain = format!("records 1, keys {KEY_FORMAT}");
        // Compact records may exist. Versions that do not look for them refuse it, and so does a cluster, which has none.
        let compact = format!("records 2, keys {KEY_FORMAT}");
        let is_compact = self.options.layout == RedisLayout::Compact;
        let expected = if is_compact { &compact } else { &plain };
        let mut get = redis::cmd("GET");
        let mut found = self.run_command(OPERATION, get.arg(&key), &key).await?;
        if found == Value::Nil {
            self.run_command(OPERATION, redis::cmd("SET").arg(&key).arg(expected).arg("NX"), &key).await?;
            found = self.run_command(OPERATION, &get, &key).await?;
        }
        if is_compact && found == Value::BulkString(plain.clone().into_bytes()) {
            self.run_command(OPERATION, redis::cmd("SET").arg(&key).arg(&compact), &key).await?;
            found = self.run_command(OPERATION, &get, &key).await?;
        }
        let found: Option<String> = redis::from_redis_value(found).map_err(|_| invalid_reply(OPERATION))?;
        match found {
            Some(found) if found == *expected => Ok(()),
            Some(found) if found == compact && !self.network.is_cluster() => Ok(()),
            found => Err(Error::new(
                ErrorKind::Config,
                OPERATION,
                format!(
                    "they are written as \"{}\", this version reads \"{expected}\"; use the version that wrote them, or another prefix",
                    found.unwrap_or_default().escape_default()
                ),
            )),
        }
    }
}
