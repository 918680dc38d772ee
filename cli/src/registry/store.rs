//! Opens the store.

use std::path::PathBuf;
use std::sync::Arc;

use onceward::store::Advice;
use onceward::{CheckpointStore, Error, ErrorKind, MemoryStore, Store};

#[cfg(not(all(feature = "sqlite", feature = "redis", feature = "postgres")))]
use super::not_in_this_build;
use super::outbox::AnyOutbox;
use crate::config::{self, Config};

/// What a command needs the store for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To run: what is missing is created.
    Run,
    /// To see whether a run would succeed: nothing is created.
    Check,
    /// To look at or change keys: nothing is created, and what is in another process's memory is out of reach.
    Operate,
}

/// A store that is open, in each of its roles.
pub(crate) struct OpenStore {
    /// Keeps the keys.
    pub(crate) store: Arc<dyn Store>,
    /// Keeps how far a source without a broker was read.
    pub(crate) checkpoints: Arc<dyn CheckpointStore>,
    /// Runs handlers in the completion's own transaction, where it can.
    pub(crate) inbox: Option<Inbox>,
    /// Keeps what handlers want published, where it can.
    pub(super) outbox: Option<Box<dyn AnyOutbox>>,
}

/// A transactional store: these are known by type, since their transactions differ.
#[derive(Clone)]
pub(crate) enum Inbox {
    /// `[store.sqlite]`.
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<onceward_sqlite::SqliteStore>),
    /// `[store.postgres]`.
    #[cfg(feature = "postgres")]
    Postgres(Arc<onceward_postgres::PgStore>),
}

impl OpenStore {
    /// What the store finds out about itself, but for what [`Config::advice`] has said already.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached or must not be used as it is.
    pub(crate) async fn check(&self, config: &Config) -> Result<Vec<Advice>, Error> {
        let advice = self.store.check().await?;
        Ok(if matches!(config.store, config::Store::Memory(_)) { Vec::new() } else { advice })
    }

    /// Lets go of files and connections, in good order; nothing depends on it.
    pub(crate) async fn close(self) {
        match self.inbox {
            #[cfg(feature = "sqlite")]
            Some(Inbox::Sqlite(store)) => store.close().await,
            #[cfg(feature = "postgres")]
            Some(Inbox::Postgres(store)) => store.close().await,
            _ => {}
        }
    }
}

/// Opens the store.
///
/// # Errors
/// [`Error`] if it cannot be reached or must not be used as it is.
pub(crate) async fn open_store(config: &Config, purpose: Purpose) -> Result<OpenStore, Error> {
    match &config.store {
        config::Store::Memory(_) if purpose == Purpose::Operate => {
            let what = "it is the memory of the process that runs, and gone with it; use another store to look into it";
            Err(Error::new(ErrorKind::Config, "look into [store.memory]", what))
        }
        config::Store::Memory(_) => Ok(memory()),
        #[cfg(feature = "sqlite")]
        config::Store::Sqlite(store) => sqlite::open(config, store, purpose).await,
        #[cfg(feature = "redis")]
        config::Store::Redis(store) => {
            let store = Arc::new(super::redis::open(config, store)?);
            Ok(OpenStore { store: store.clone(), checkpoints: store, inbox: None, outbox: None })
        }
        #[cfg(feature = "postgres")]
        config::Store::Postgres(store) => super::postgres::open(config, store, purpose).await,
        #[cfg(not(all(feature = "sqlite", feature = "redis", feature = "postgres")))]
        other => Err(not_in_this_build(&format!("store.{}", other.name()))),
    }
}

/// Creates the store's schema or brings it up to date, and answers how many steps that took; `None` where there is no
/// schema.
///
/// # Errors
/// As for [`open_store`].
pub(crate) async fn migrate(config: &Config) -> Result<Option<u32>, Error> {
    match &config.store {
        config::Store::Memory(_) => Ok(None),
        #[cfg(feature = "redis")]
        config::Store::Redis(_) => Ok(None),
        #[cfg(feature = "sqlite")]
        config::Store::Sqlite(store) => {
            let options = sqlite::options(config, store);
            sqlite::directory(&options)?;
            onceward_sqlite::SqliteStore::migrate(&options).await.map(Some)
        }
        #[cfg(feature = "postgres")]
        config::Store::Postgres(store) => {
            onceward_postgres::PgStore::migrate(&super::postgres::options(config, store)?).await.map(Some)
        }
        #[cfg(not(all(feature = "sqlite", feature = "redis", feature = "postgres")))]
        other => Err(not_in_this_build(&format!("store.{}", other.name()))),
    }
}

/// The file that the first run will create as its store, if there is none yet.
pub(crate) fn file_to_come(config: &Config) -> Option<PathBuf> {
    let config::Store::Sqlite(store) = &config.store else { return None };
    Some(config.resolve(&store.path)).filter(|path| !path.exists())
}

/// How many steps the store's schema lacks, which the first run takes; 0 where there is no schema.
///
/// # Errors
/// As for [`open_store`].
pub(crate) async fn missing_migrations(config: &Config) -> Result<u32, Error> {
    match &config.store {
        #[cfg(feature = "sqlite")]
        config::Store::Sqlite(store) => {
            onceward_sqlite::SqliteStore::missing_migrations(&sqlite::options(config, store)).await
        }
        #[cfg(feature = "postgres")]
        config::Store::Postgres(store) => {
            onceward_postgres::PgStore::missing_migrations(&super::postgres::options(config, store)?).await
        }
        _ => Ok(0),
    }
}

fn memory() -> OpenStore {
    let store = Arc::new(MemoryStore::new());
    OpenStore { checkpoints: store.clone(), store, inbox: None, outbox: None }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::sync::Arc;

    use onceward::{Error, ErrorKind};
    use onceward_sqlite::{SqliteConfig, SqliteStore};

    use super::{Inbox, OpenStore, Purpose};
    use crate::config::{self, Config};

    pub(super) async fn open(
        config: &Config,
        store: &config::SqliteStore,
        purpose: Purpose,
    ) -> Result<OpenStore, Error> {
        let mut options = options(config, store);
        match purpose {
            Purpose::Run => directory(&options)?,
            Purpose::Check | Purpose::Operate if options.path.exists() => {
                options.create = false;
                options.migrate = false;
            }
            Purpose::Check | Purpose::Operate => {
                let what = format!(
                    "there is no file {} yet; `onceward run` creates it, and so does `onceward migrate`",
                    options.path.display()
                );
                return Err(Error::new(ErrorKind::Config, "open the SQLite store", what));
            }
        }
        let store = Arc::new(SqliteStore::open(options).await?);
        Ok(OpenStore {
            store: store.clone(),
            checkpoints: store.clone(),
            outbox: Some(Box::new(store.outbox())),
            inbox: Some(Inbox::Sqlite(store)),
        })
    }

    /// SQLite creates no directories, and calls a missing one a trouble that may pass.
    pub(super) fn directory(options: &SqliteConfig) -> Result<(), Error> {
        match options.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
                let what = format!(
                    "{} cannot be created, since there is no directory {}; create it, or correct store.sqlite.path",
                    options.path.display(),
                    parent.display()
                );
                Err(Error::new(ErrorKind::Config, "open the SQLite store", what))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn options(config: &Config, store: &config::SqliteStore) -> SqliteConfig {
        // A little less than the limit of a call, so that a busy file is known to be busy before the call is given up.
        let busy = config.store.limits().timeout.get().mul_f64(0.9);
        let mut options = SqliteConfig::new(config.resolve(&store.path));
        options.busy_timeout = busy;
        options
    }
}
