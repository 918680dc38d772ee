//! `[store.memory]`, the store that the core itself brings.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, ErrorKind, MemoryStore};

use crate::{Checked, Context, OpenStore, Purpose, Secrets, StoreFacts, StorePlugin, table};

table! {
    /// The memory of this process. Nothing outlives it: for trials only.
    MemoryTable [store] {}
}

impl Secrets for MemoryTable {}

#[async_trait]
impl StorePlugin for MemoryTable {
    fn describe(&self, _: &Context<'_>) -> String {
        "memory".to_owned()
    }

    fn facts(&self) -> StoreFacts {
        StoreFacts { is_in_memory: true, ..StoreFacts::default() }
    }

    fn check(&self, _: &Context<'_>) -> Checked {
        Ok(())
    }

    async fn open(&self, _: &Context<'_>, purpose: Purpose) -> Result<OpenStore, Error> {
        if purpose == Purpose::Operate {
            let what = "it is the memory of the process that runs, and lost with it; use another store to inspect it";
            return Err(Error::new(ErrorKind::Config, "inspect [store.memory]", what));
        }
        let store = Arc::new(MemoryStore::new());
        Ok(OpenStore { checkpoints: store.clone(), store, audit: None, statements: None, outbox: None })
    }
}
