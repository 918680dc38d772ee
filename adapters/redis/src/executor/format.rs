//! The version of the keys in the server, which a version that cannot read them refuses.
//!
//! ```text
//! records 1, keys …    records of their own only
//! records 2, keys …    compact records may be there: versions that do not look for them refuse it, and so does a cluster, which has none
//! ```

use onceward::adapter::KEY_FORMAT;
use onceward::{Error, ErrorKind};
use redis::Value;

use crate::error::invalid_reply;
use crate::executor::ScriptExecutor;

const READ: &str = "read the format of the keys in Redis";
const RAISE: &str = "raise the format of the keys in Redis";

/// Sets ARGV[2] unless another version than ARGV[1] is there; answers what is there then.
const RAISE_SCRIPT: &str = "local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then return found end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]";

/// A version of the keys that this version of the program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeysFormat {
    /// Records of their own only.
    Plain,
    /// Compact records may be there.
    WithCompact,
}

impl KeysFormat {
    /// The version of records and key names, and that of key hashes.
    fn text(self) -> String {
        let records = match self {
            Self::Plain => 1,
            Self::WithCompact => 2,
        };
        format!("records {records}, keys {KEY_FORMAT}")
    }
}

impl ScriptExecutor {
    /// Checks once that this version reads the keys in the server; writes its version if the server has none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if they have another format.
    pub(crate) async fn ensure_format(&self) -> Result<(), Error> {
        let check = async || self.check_format().await.map(drop);
        self.format.get_or_try_init(check).await.copied()
    }

    /// As [`ensure_format`](Self::ensure_format), but asks the server each time.
    pub(crate) async fn check_format(&self) -> Result<KeysFormat, Error> {
        let key = self.keyspace.format();
        let mut get = redis::cmd("GET");
        let mut found = self.run_command(READ, get.arg(&key), &key).await?;
        if found == Value::Nil {
            let mut set = redis::cmd("SET");
            set.arg(&key).arg(KeysFormat::Plain.text()).arg("NX");
            self.run_command(READ, &set, &key).await?;
            found = self.run_command(READ, &get, &key).await?;
        }
        self.known_format(READ, found)
    }

    /// Records once that compact records may be there. It precedes the first one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the keys have another format, which stays.
    pub(crate) async fn ensure_compact_format(&self) -> Result<(), Error> {
        let raise = async || {
            let key = self.keyspace.format();
            let mut raise = redis::cmd("EVAL");
            raise.arg(RAISE_SCRIPT).arg(1).arg(&key);
            raise.arg(KeysFormat::Plain.text()).arg(KeysFormat::WithCompact.text());
            let found = self.run_command(RAISE, &raise, &key).await?;
            self.known_format(RAISE, found).map(drop)
        };
        self.compact_format.get_or_try_init(raise).await.copied()
    }

    fn known_format(&self, operation: &'static str, found: Value) -> Result<KeysFormat, Error> {
        let found: Option<String> = redis::from_redis_value(found).map_err(|_| invalid_reply(operation))?;
        let found = found.unwrap_or_default();
        let (plain, compact) = (KeysFormat::Plain.text(), KeysFormat::WithCompact.text());
        let problem = match found {
            found if found == plain => return Ok(KeysFormat::Plain),
            found if found == compact && !self.network.is_cluster() => return Ok(KeysFormat::WithCompact),
            found if found == compact => format!(
                "they are written as \"{compact}\": a process with the compact layout has used them, which is not available in a \
                 cluster; use the server that they come from, or another prefix"
            ),
            found => format!(
                "they are written as \"{}\", this version reads \"{plain}\" and \"{compact}\"; use the version that wrote them, or \
                 another prefix",
                found.escape_default()
            ),
        };
        Err(Error::new(ErrorKind::Config, operation, problem))
    }
}
