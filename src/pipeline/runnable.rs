//! A pipeline that is put together and ready to run: [`Pipeline`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::guarantee::Guarantee;
use super::summary::Summary;
use crate::error::Error;
use crate::telemetry::Counters;

/// A consumer, a store and a handler, ready to run under the guarantee `G`.
///
/// ```
/// # #[cfg(feature = "testing")]
/// # {
/// use std::sync::Arc;
/// use onceward::{Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn, testing::MemoryBroker};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), onceward::Error> {
/// async fn charge(_app: (), message: Message) -> Handled {
///     println!("{}", String::from_utf8_lossy(message.payload()));
///     Ok(())
/// }
///
/// let broker = MemoryBroker::finite();
/// for payload in ["pay 7", "pay 7 again"] {
///     broker.publish(Message::builder(payload).header("idempotency-key", "7"));
/// }
/// let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), Arc::new(MemoryStore::new()))
///     .keys([KeySource::Header("idempotency-key".into())])
///     .park_exhausted()
///     .fingerprint(false)
///     .handler(handler_fn((), charge))?;
/// let summary = pipeline.run(Default::default()).await?;
/// assert_eq!((summary.handled(), summary.duplicates()), (1, 1));
/// # Ok(()) }
/// # main().unwrap();
/// # }
/// ```
#[must_use = "a pipeline does nothing until it runs"]
pub struct Pipeline<G> {
    pub(super) start: Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<Summary, Error>> + Send>,
    pub(super) counters: Arc<Counters>,
    pub(super) guarantee: PhantomData<fn() -> G>,
}

impl<G: Guarantee> Pipeline<G> {
    /// The counters of the pipeline; may be read while it runs.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Runs until the source is at its end or `shutdown` fires. Then nothing more is taken or started, running handlers
    /// get until the drain deadline, and everything that is done is settled.
    ///
    /// # Errors
    /// [`Error`] if the store or the source must not be used as they are, or the source fails for good. Everything that
    /// was done until then is settled.
    ///
    /// # Cancel safety
    /// Dropping the future starts a shutdown that goes on in the background, as long as the runtime lives. If that is
    /// dropped too, nothing is acked that is not completed.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Summary, Error> {
        (self.start)(shutdown).await
    }
}

impl<G: Guarantee> fmt::Debug for Pipeline<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("guarantee", &G::NAME).finish_non_exhaustive()
    }
}
