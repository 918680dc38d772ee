//! Configuration of a SQLite store: [`SqliteConfig`].

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::adapter::{open_private, private_path};
use onceward::{Error, ErrorKind};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

/// Serializes the creation of files in this process: closing a file handle releases all locks that SQLite holds on that file
/// for the process.
static CREATING: Mutex<()> = Mutex::new(());

/// The longest busy timeout that SQLite accepts.
const MAX_BUSY_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// Where the file of a [`SqliteStore`](crate::SqliteStore) is, and how it is opened.
///
/// ```
/// use onceward_sqlite::SqliteConfig;
/// use std::time::Duration;
///
/// let mut config = SqliteConfig::new("onceward.db");
/// config.busy_timeout = Duration::from_secs(30);
/// config.check().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// The file, a plain path in UTF-8. A symbolic link is followed as [`onceward::adapter::private_path`] says, and never to create a
    /// file.
    pub path: PathBuf,
    /// Whether a missing file is created, with mode 0600; default true. Its directory must exist.
    pub create: bool,
    /// Whether opening the store applies pending migrations; default true. With false, a missing or older schema is an
    /// error, and [`SqliteStore::migrate`](crate::SqliteStore::migrate) applies them.
    pub migrate: bool,
    /// How long a write waits for the write of another process before it fails with a retryable error; default 10 s, at most
    /// 24 days. Where processes share the file, longer than their longest transactional handler.
    pub busy_timeout: Duration,
}

/// Resolves the links of `path`, and creates the file if it is missing and `create` is set. An existing file is not opened.
fn create_file(path: &Path, create: bool) -> io::Result<PathBuf> {
    let _alone = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = private_path(path)?;
    if create && !path.exists() {
        match open_private(&path, OpenOptions::new().write(true).create_new(true)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(path)
}

/// False for the names that SQLite takes for a database in memory or for a URL.
pub(crate) fn is_plain_file(path: &str) -> bool {
    path != ":memory:" && !path.starts_with("file:")
}

impl SqliteConfig {
    /// The file at `path`, created if it is missing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), create: true, migrate: true, busy_timeout: Duration::from_secs(10) }
    }

    /// Checks that the values are valid, without opening the file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the value and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Config, "open the SQLite store", what));
        if self.path.as_os_str().is_empty() {
            return invalid("its path is empty; name a file, for example \"onceward.db\"".to_owned());
        }
        match self.path.to_str() {
            None => return invalid("its path is not valid UTF-8; SQLite needs one that is".to_owned()),
            Some(text) if !is_plain_file(text) => {
                return invalid(format!(
                    "its path is {text:?}, but it must be a plain file; for keys in memory use the memory store"
                ));
            }
            Some(_) => {}
        }
        if self.busy_timeout > MAX_BUSY_TIMEOUT {
            return invalid(format!("busy_timeout is {:?}; at most {MAX_BUSY_TIMEOUT:?}", self.busy_timeout));
        }
        Ok(())
    }

    /// The configuration with the path resolved and the file created. SQLite itself would follow any link, and create the file
    /// with the umask's mode; its journal files get the mode of the file.
    pub(crate) async fn prepared(&self) -> Result<Self, Error> {
        self.check()?;
        let (path, create) = (self.path.clone(), self.create);
        let prepared = tokio::task::spawn_blocking(move || create_file(&path, create));
        match prepared.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
            Ok(path) => Ok(Self { path, ..self.clone() }),
            Err(error) => Err(self.not_opened(error)),
        }
    }

    fn not_opened(&self, error: io::Error) -> Error {
        // Errors of [`private_path`] contain the fix.
        let is_ours = error.get_ref().is_some();
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ if is_ours => ErrorKind::Config,
            _ => ErrorKind::Unavailable,
        };
        let what = match is_ours {
            true => error.to_string(),
            false => format!(
                "the file cannot be opened ({error}); its directory must exist and be writable by this user"
            ),
        };
        Error::new(kind, format!("open the SQLite store {}", self.path.display()), what)
    }

    /// Options of the connection that writes.
    pub(crate) fn for_writing(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(self.create)
            .busy_timeout(self.busy_timeout)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit is on disk when it returns: an ack may follow.
            .synchronous(SqliteSynchronous::Full)
            // 16 MiB each: the index of half a million keys in memory, and fewer copies of one page into the file.
            .pragma("cache_size", "-16384")
            .pragma("wal_autocheckpoint", "4096")
            // A whole batch of rows is sent without waiting for the receiver.
            .row_buffer_size(512)
            .thread_name(|id| format!("onceward-sqlite-{id}"))
            .disable_statement_logging()
    }

    /// Options of the connection that reads.
    pub(crate) fn for_reading(&self) -> SqliteConnectOptions {
        self.for_writing().create_if_missing(false).pragma("query_only", "ON")
    }

    /// Options for reading a file that may belong to another program: setting the journal mode would write to it.
    pub(crate) fn for_inspection(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(self.busy_timeout)
            .pragma("query_only", "ON")
            .disable_statement_logging()
    }
}
