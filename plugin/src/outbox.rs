//! The outbox of any store: [`AnyOutbox`].

use std::sync::Arc;

use futures_util::future::BoxFuture;
use onceward::outbox::{OutboxStatus, OutboxStore, Relay, RelayConfig, RelayCounts};
use onceward::{Error, Publisher};
use tokio_util::sync::CancellationToken;

/// A relay that is ready to run.
#[must_use = "a relay does nothing until it runs"]
pub struct ReadyRelay {
    /// What it does, also while it runs.
    pub counts: Arc<RelayCounts>,
    /// Runs until the token is cancelled.
    pub running: BoxFuture<'static, Result<(), Error>>,
}

/// An [`OutboxStore`] whose type only its relay knows. Every `OutboxStore` that is `Clone` is one.
pub trait AnyOutbox: Send + Sync {
    /// See [`Relay::new`].
    ///
    /// # Errors
    /// [`Error`] if the settings are out of range.
    fn relay(
        &self,
        publisher: Arc<dyn Publisher>,
        settings: RelayConfig,
        shutdown: CancellationToken,
    ) -> Result<ReadyRelay, Error>;

    /// See [`OutboxStore::status`].
    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, Error>>;
}

impl<S: OutboxStore + Clone> AnyOutbox for S {
    fn relay(
        &self,
        publisher: Arc<dyn Publisher>,
        settings: RelayConfig,
        shutdown: CancellationToken,
    ) -> Result<ReadyRelay, Error> {
        let relay = Relay::new(self.clone(), publisher, settings)?;
        let counts = relay.counts();
        Ok(ReadyRelay { counts, running: Box::pin(async move { relay.run(shutdown).await }) })
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, Error>> {
        OutboxStore::status(self)
    }
}
