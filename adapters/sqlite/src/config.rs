//! Where the file is and how it is opened: [`SqliteConfig`].

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::{Error, ErrorKind, open_private, private_path};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

/// Held while a new file is open, and taken by whoever is about to open one: to close a file ends the locks that SQLite holds
/// on it for this process.
static CREATING: Mutex<()> = Mutex::new(());

/// The longest busy timeout SQLite can be told.
const MAX_BUSY_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// How to open a [`SqliteStore`](crate::SqliteStore).
///
/// ```
/// use onceward_sqlite::SqliteConfig;
/// use std::time::Duration;
///
/// let config = SqliteConfig::new("onceward.db").busy_timeout(Duration::from_secs(30));
/// ```
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    pub(crate) path: PathBuf,
    busy_timeout: Duration,
    create: bool,
    pub(crate) migrate: bool,
}

/// Where `path` leads, after the file there was created if it is missing and may be. One that exists is not opened.
fn prepare(path: &Path, create: bool) -> io::Result<PathBuf> {
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

impl SqliteConfig {
    /// The file at `path`, created with mode 0600 if it is not there; its directory must exist. A symbolic link is followed as
    /// [`onceward::private_path`] says, and never to create a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), busy_timeout: Duration::from_secs(10), create: true, migrate: true }
    }

    /// How long a write waits for another process that is writing before it fails with a retryable error. 10 s unless
    /// told; where processes share the file, longer than their longest transactional handler.
    #[must_use]
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Whether to create a missing file. True unless told.
    #[must_use]
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Whether [`SqliteStore::open`](crate::SqliteStore::open) brings the schema up to date. True unless told; if
    /// false, an older or missing schema is refused, and [`SqliteStore::migrate`](crate::SqliteStore::migrate) does it.
    #[must_use]
    pub fn migrate_on_open(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks what can be checked without opening the file.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::new(ErrorKind::Config, "open the SQLite store", what));
        if self.path.as_os_str().is_empty() {
            return wrong("its path is empty; name a file, for example \"onceward.db\"".to_owned());
        }
        match self.path.to_str() {
            None => return wrong("its path is not valid UTF-8; SQLite needs one that is".to_owned()),
            Some(text) if text == ":memory:" || text.starts_with("file:") => {
                return wrong(format!(
                    "its path is {text:?}, but it must be a plain file; for keys in memory use the memory store"
                ));
            }
            Some(_) => {}
        }
        if self.busy_timeout > MAX_BUSY_TIMEOUT {
            return wrong(format!("busy_timeout is {:?}; at most {MAX_BUSY_TIMEOUT:?}", self.busy_timeout));
        }
        Ok(())
    }

    /// The configuration with the file that the path leads to, which is there if it may be created. SQLite itself would follow
    /// any link, and give a new file the mode that the umask leaves; what it puts beside the file has the file's own mode.
    pub(crate) async fn prepared(&self) -> Result<Self, Error> {
        self.validate()?;
        let (path, create) = (self.path.clone(), self.create);
        let prepared = tokio::task::spawn_blocking(move || prepare(&path, create));
        match prepared.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
            Ok(path) => Ok(Self { path, ..self.clone() }),
            Err(error) => Err(self.not_opened(error)),
        }
    }

    fn not_opened(&self, error: io::Error) -> Error {
        // Those of [`private_path`] say what to do themselves.
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

    /// For the connection that writes.
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
            // A whole batch of rows passes to this side without waiting for it.
            .row_buffer_size(512)
            .thread_name(|id| format!("onceward-sqlite-{id}"))
            .disable_statement_logging()
    }

    /// For the connection that only looks.
    pub(crate) fn for_reading(&self) -> SqliteConnectOptions {
        self.for_writing().create_if_missing(false).pragma("query_only", "ON")
    }

    /// For a look at a file that may not be ours: setting the journal mode would write to it.
    pub(crate) fn for_looking(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(self.busy_timeout)
            .pragma("query_only", "ON")
            .disable_statement_logging()
    }
}
