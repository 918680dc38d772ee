//! The contracts of publish targets: [`TargetPlugin`] for handlers and [`RelayPlugin`] for the outbox relay.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::{Error, Publisher};

use crate::source::Place;
use crate::value::HumanDuration;
use crate::{Checked, Context, Secrets};

/// A table `[handler.publish.NAME]`: another broker that each message is published to.
#[async_trait]
pub trait TargetPlugin: Secrets + fmt::Debug + Send + Sync {
    /// How long one attempt may take.
    fn timeout(&self) -> HumanDuration;

    /// Sets the timeout, where it follows from other options.
    fn set_timeout(&mut self, timeout: HumanDuration);

    /// Refuses options that are out of range or contradict each other.
    ///
    /// # Errors
    /// The first problem.
    fn check(&self, context: &Context<'_>) -> Checked;

    /// The place where messages go, with the option that names it: to detect a handler that publishes into its own
    /// source.
    fn place(&self) -> (&'static str, Place);

    /// Connects, and looks whether the destination exists: one that is missing would cost every message its attempts.
    ///
    /// # Errors
    /// [`Error`] if the broker cannot be reached, or the destination cannot be used.
    async fn open(&self, context: &Context<'_>) -> Result<Target, Error>;
}

/// An open publish target.
#[derive(Clone)]
pub struct Target {
    /// Publishes, and returns after the broker's confirmation.
    pub publisher: Arc<dyn Publisher>,
    /// The destination, as the publisher understands it.
    pub destination: String,
}

/// A table `[outbox.NAME]`: the broker that the outbox relay publishes to. Each row names its queue or topic.
#[async_trait]
pub trait RelayPlugin: Secrets + fmt::Debug + Send + Sync {
    /// A short description without secrets, for logs.
    fn describe(&self) -> String;

    /// Refuses options that are out of range or contradict each other.
    ///
    /// # Errors
    /// The first problem.
    fn check(&self, context: &Context<'_>) -> Checked;

    /// Connects.
    ///
    /// # Errors
    /// [`Error`] if the broker cannot be reached.
    async fn open(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error>;

    /// Checks whether the broker answers, and reports it: "its broker answers".
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached, or rejects the credentials.
    async fn inspect(&self, context: &Context<'_>) -> Result<String, Error>;
}
