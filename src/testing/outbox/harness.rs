//! The outbox under test: [`OutboxHarness`].

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;
use crate::outbox::OutboxStore;
use crate::publisher::Outgoing;

/// An outbox under test. Each value has rows of its own, none at first.
#[async_trait]
pub trait OutboxHarness: Send + Sync {
    /// The outbox.
    type Outbox: OutboxStore;

    /// A handle to the harness's rows. Two handles are two relays: as far apart as the outbox allows.
    async fn outbox(&self) -> Self::Outbox;

    /// Writes messages in one transaction, and commits it; from several tasks at once, if it is called so.
    ///
    /// # Errors
    /// The outbox's own; nothing is committed then.
    async fn commit(&self, messages: &[Outgoing]) -> Result<(), Error>;

    /// Writes messages in one transaction, and rolls it back.
    async fn roll_back(&self, messages: &[Outgoing]);

    /// Longer than anything takes that works.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}
