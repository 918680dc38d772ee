//! Consumer in, handler around, store between: [`Pipeline`].

mod breaker;
mod builder;
mod chance;
mod claim;
pub mod config;
mod context;
mod dead_letters;
mod dispatch;
mod event;
mod gate;
mod halt;
mod handle;
mod heartbeat;
mod identity;
mod intake;
mod kept_alive;
mod key_sources;
pub(crate) mod limits;
mod outcomes;
mod process;
mod receipt;
mod record;
mod run;
mod runner;
mod settle;
mod settler;
pub mod start_check;
mod store_calls;
mod takeovers;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use builder::{PipelineBuilder, SharedStore};

use crate::error::Error;
use crate::telemetry::{Counter, Counters};

/// One effect per (scope, key) in the TTL, provided that an error or timeout means that the effect did not happen, and
/// that the process neither dies nor loses its lease between the handler's start and its completion.
#[derive(Debug)]
pub enum Deduplicated {}

/// Exactly one committed effect per (scope, key) in the TTL, whatever is killed: the completion is committed in the
/// effect's own transaction.
#[derive(Debug)]
pub enum EffectivelyOnce {}

/// A guarantee level, as a type: [`Deduplicated`] or [`EffectivelyOnce`].
pub trait Guarantee: Send + 'static {
    /// The level's name in configuration and logs.
    const NAME: &'static str;
}

impl Guarantee for Deduplicated {
    const NAME: &'static str = "deduplicated";
}

impl Guarantee for EffectivelyOnce {
    const NAME: &'static str = "effectively-once";
}

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
    start: Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<Summary, Error>> + Send>,
    counters: Arc<Counters>,
    guarantee: PhantomData<fn() -> G>,
}

impl<G: Guarantee> Pipeline<G> {
    /// What the pipeline counts; may be read while it runs.
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

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    pub(crate) counters: Arc<Counters>,
    pub(crate) abandoned_runs: usize,
    pub(crate) parked: u64,
}

impl Summary {
    /// Everything that was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Deliveries received.
    pub fn received(&self) -> u64 {
        self.counters.get(Counter::Received)
    }

    /// Deliveries acked after their own run.
    pub fn handled(&self) -> u64 {
        self.counters.get(Counter::Handled)
    }

    /// Deliveries acked as duplicates, of completed or of dead keys.
    pub fn duplicates(&self) -> u64 {
        self.counters.get(Counter::Duplicates) + self.counters.get(Counter::DuplicatesOfDead)
    }

    /// Runs that failed and were repeated.
    pub fn retried(&self) -> u64 {
        self.counters.get(Counter::Retried)
    }

    /// Deliveries acked after their dead letter was confirmed.
    pub fn dead_lettered(&self) -> u64 {
        self.counters.get(Counter::DeadLettered)
    }

    /// Deliveries that went back to the source.
    pub fn given_back(&self) -> u64 {
        self.counters.get(Counter::GivenBack)
    }

    /// Messages that failed for good and that a policy keeps in the source.
    pub fn parked(&self) -> u64 {
        self.parked
    }

    /// Runs that were still going when the drain deadline had passed: they were asked to stop, and dropped if they did not.
    /// What did not succeed even so is not acked.
    pub fn abandoned_runs(&self) -> usize {
        self.abandoned_runs
    }
}
