//! Configuration of a file source: [`FileConfig`].

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use onceward::{Error, OwnHeaders};

use crate::error;

/// The format of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "plugin",
    derive(
        onceward_plugin::serde::Serialize,
        onceward_plugin::serde::Deserialize,
        onceward_plugin::schemars::JsonSchema
    ),
    serde(crate = "::onceward_plugin::serde", rename_all = "kebab-case"),
    schemars(crate = "::onceward_plugin::schemars")
)]
#[non_exhaustive]
pub enum Format {
    /// The payload itself, byte for byte; there are no headers and no message id.
    #[default]
    Raw,
    /// A JSON object `{"id", "headers", "order_key", "payload"}`, as dead letters are written.
    Envelope,
}

/// Which file a [`FileConsumer`](crate::FileConsumer) reads, and how.
///
/// ```
/// # use onceward_file::{FileConfig, Format};
/// let mut config = FileConfig::new("orders.ndjson");
/// config.format = Format::Envelope;
/// config.follow = true;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileConfig {
    /// The file, or `-` for standard input. A named pipe or a character device is read like standard input.
    pub path: PathBuf,
    /// The format of a line; default [`Format::Raw`].
    pub format: Format,
    /// Whether to wait for more lines at the end of the file, and for the file itself; default false. Not for standard input.
    pub follow: bool,
    /// The maximum size of a line in bytes, without its ending, ffrom 1 byte to 1GiB; default 64MiB. A longer line is delivered with
    /// [`Defect::Oversize`](onceward::adapter::Defect::Oversize) and its first 1,024 bytes. The reader holds at most this much of one line
    /// in memory.
    pub max_message_bytes: u64,
    /// Whose `onceward-` headers are believed in raw lines: the same as the pipeline's. Default: all, since the file is under the
    /// operator's control. A line that looks like a dead letter of onceward and is not believed is malformed.
    pub own_headers: OwnHeaders,
    /// Messages of one batch at most, from 1; default 256.
    pub batch_messages: usize,
    /// A batch ends once its lines have this many bytes, from 1, default 1 MiB; it may exceed that by one line.
    pub batch_bytes: u64,
}

impl FileConfig {
    /// 64 MiB: the default of [`max_message_bytes`](Self::max_message_bytes).
    pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 64 * 1024 * 1024;
    /// The range of [`max_message_bytes`](Self::max_message_bytes).
    pub const MAX_MESSAGE_BYTES: RangeInclusive<u64> = 1..=1024 * 1024 * 1024;

    /// Reads the lines of `path` once, as raw payloads of up to 64 MiB, in batches of up to 256 messages or about 1 MiB.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Raw,
            follow: false,
            max_message_bytes: Self::DEFAULT_MAX_MESSAGE_BYTES,
            own_headers: OwnHeaders::trusted(),
            batch_messages: 256,
            batch_bytes: 1024 * 1024,
        }
    }

    /// Checks that the values are valid and agree, without opening the file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the value and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(error::config("read", &self.path, what));
        if self.path.as_os_str().is_empty() {
            return wrong("the path is empty; name a file, or \"-\" for standard input");
        }
        if self.follow && self.is_standard_input() {
            return wrong("follow = true needs a file, standard input ends by itself; leave follow out");
        }
        if !Self::MAX_MESSAGE_BYTES.contains(&self.max_message_bytes) {
            return wrong("max_message_bytes must be ffrom 1 byte to 1 GiB");
        }
        if self.batch_messages == 0 || self.batch_bytes == 0 {
            return wrong("batch_messages and batch_bytes must be 1 or more");
        }
        Ok(())
    }

    pub(crate) fn is_standard_input(&self) -> bool {
        self.path == Path::new("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_disagree_are_refused_with_the_fix() {
        let mut config = FileConfig::new("-");
        assert!(config.check().is_ok());
        config.follow = true;
        assert!(config.check().unwrap_err().to_string().contains("leave follow out"));
        assert!(FileConfig::new("").check().is_err());
        for spoil in [
            (|config| config.max_message_bytes = 0) as fn(&mut FileConfig),
            |config| config.batch_messages = 0,
            |config| config.batch_bytes = 0,
        ] {
            let mut config = FileConfig::new("orders");
            spoil(&mut config);
            assert!(config.check().is_err());
        }
    }
}
