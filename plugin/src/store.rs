//! The contract of a store: [`StorePlugin`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::Error;
use onceward::adapter::{AuditLog, CheckpointStore, StoreAdmin};

use crate::outbox::AnyOutbox;
use crate::statement::StatementStore;
use crate::value::HumanDuration;
use crate::{Checked, Context, Finding, Secrets};

/// A table `[store.NAME]`: where keys are remembered.
#[async_trait]
pub trait StorePlugin: HasStoreLimits + Secrets + fmt::Debug + Send + Sync {
    /// A short description without secrets, for logs.
    fn describe(&self, context: &Context<'_>) -> String;

    /// What the defaults and checks of other options depend on.
    fn facts(&self) -> StoreFacts;

    /// Refuses options that are out of range or contradict each other.
    ///
    /// # Errors
    /// The first problem.
    fn check(&self, context: &Context<'_>) -> Checked;

    /// What will run, but probably not as intended. Nothing by default.
    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        let _ = context;
        Vec::new()
    }

    /// Opens the store.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached or must not be used as it is.
    async fn open(&self, context: &Context<'_>, purpose: Purpose) -> Result<OpenStore, Error>;

    /// Looks whether a run could open the store, without creating anything. `None`: it could, and
    /// [`open`](Self::open) may be called. By default nothing is missing.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached.
    async fn inspect(&self, context: &Context<'_>) -> Result<Option<Finding>, Error> {
        let _ = context;
        Ok(None)
    }

    /// Creates the store's schema or brings it up to date, and returns how many steps that took; `None` where there is no
    /// schema, which is the default.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    async fn migrate(&self, context: &Context<'_>) -> Result<Option<u32>, Error> {
        let _ = context;
        Ok(None)
    }
}

/// What the defaults and checks of other options depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreFacts {
    /// A statement can run in the completion's transaction: `[handler.sql]` works.
    pub is_transactional: bool,
    /// There is a single writer, so that a lease cannot be renewed while a handler's transaction is open.
    pub has_single_writer: bool,
    /// The store has an outbox.
    pub has_outbox: bool,
    /// The store is the memory of this process: nothing outlives it.
    pub is_in_memory: bool,
}

/// A table with the options that every store has: [`table!`](crate::table!) with `store` in brackets implements it.
pub trait HasStoreLimits {
    /// The limits. The program checks them.
    fn limits(&self) -> StoreLimits;

    /// Sets the limits, where they follow from other options.
    fn set_limits(&mut self, limits: StoreLimits);
}

/// The limits that every store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// How long a completed key is remembered.
    pub ttl: HumanDuration,
    /// How long a claim lasts without renewal.
    pub lease: HumanDuration,
    /// How long one call to the store may take.
    pub timeout: HumanDuration,
    /// How long entries of the audit trail are kept.
    pub audit_retention: HumanDuration,
}

/// The purpose for which a command needs the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run: what is missing is created.
    Run,
    /// To see whether a run would succeed: nothing is created.
    Check,
    /// To look at or change keys: nothing is created, and the memory of another process is out of reach.
    Operate,
}

/// A store that is open, in each of its roles.
pub struct OpenStore {
    /// Keeps the keys.
    pub store: Arc<dyn StoreAdmin>,
    /// Keeps how far a source without a broker has been read.
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// Keeps what operators changed, where anything outlives this process.
    pub audit: Option<Arc<dyn AuditLog>>,
    /// Runs `[handler.sql]` in the completion's transaction, where it can.
    pub statements: Option<Arc<dyn StatementStore>>,
    /// Keeps what handlers want published, where it can.
    pub outbox: Option<Box<dyn AnyOutbox>>,
}

impl OpenStore {
    /// Closes files and connections in good order; nothing depends on it.
    pub async fn close(self) {
        if let Some(store) = self.statements {
            store.close().await;
        }
    }
}
