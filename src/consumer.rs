//! The traits of a broker adapter: [`Consumer`] receives batches, [`Acker`] settles them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::delivery::{Delivery, Settlement, Tag};
use crate::error::Error;
use crate::telemetry::SourceHealth;

/// The capabilities of a broker. Differences between adapters are values here, not branches on their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The source can wait before it delivers again: [`Settlement::Retry`] keeps its delay. Otherwise delays are spent
    /// holding the delivery.
    pub delayed_retry: bool,
    /// Deliveries must be kept alive by [`Acker::extend`] at least this often, from receive on. `None`: no deadline.
    pub heartbeat: Option<Duration>,
    /// The source ends by itself ([`Consumer::receive`] answers `None`).
    pub finite: bool,
    /// [`Consumer::is_idle`] is implemented. Without it a run cannot end when the source is idle: a pipeline with
    /// [`until_idle`](crate::PipelineConfig::until_idle) is refused, unless the source is finite.
    pub reports_idle: bool,
    /// The broker keeps the order of deliveries across redeliveries and workers (Kafka partitions, FIFO groups,
    /// single active consumer, a file).
    pub ordered: bool,
    /// After this long the broker redelivers an unsettled delivery, regardless of the heartbeat.
    pub ack_timeout: Option<Duration>,
    /// The broker drops or dead-letters a message after this many deliveries, by its own count.
    pub delivery_limit: Option<u32>,
    /// A message that is retried through the source is redelivered at another position: only our own headers name its
    /// original position, and those are not believed. The position is no key then.
    pub retries_lose_position: bool,
    /// How long the broker keeps an undelivered message: part of the time in which duplicates can still arrive.
    pub retention: Option<Duration>,
}

/// Lets the pipeline stop the deliveries of one partition while others go on: [`Consumer::flow`].
///
/// A partition is named by the [`Tag::epoch`] of its deliveries. Both calls return at once, may be repeated, and do nothing
/// for an epoch that is over.
pub trait FlowControl: Send + Sync + 'static {
    /// Delivers nothing more of this epoch until [`resume`](Self::resume). Earlier deliveries stay.
    fn pause(&self, epoch: u64);

    /// Delivers of this epoch again.
    fn resume(&self, epoch: u64);
}

/// A report of a consumer besides its deliveries: [`Consumer::notices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The deliveries of this epoch belong to another consumer soon (a Kafka partition is being revoked): the pipeline
    /// starts none of them any more and releases those that it has not started.
    Leaving {
        /// The [`Tag::epoch`] of the deliveries.
        epoch: u64,
    },
}

/// A source of delivery batches.
///
/// The contract, each sentence of which is a check in `onceward::testing` (feature `testing`):
/// every delivery has a tag of its own; a message that was not acked is delivered again after the consumer is
/// reopened; an acked message is not delivered again by the same consumer; the acker outlives the consumer, so that
/// late settlements are answered (if only by "too late") and never crash.
#[async_trait]
pub trait Consumer: Send + 'static {
    /// What this source can do, once connected.
    fn capabilities(&self) -> Capabilities;

    /// The other half: settles what this consumer delivers.
    fn acker(&self) -> Arc<dyn Acker>;

    /// Waits for the next deliveries; at least one. `None`: the source is at its end and everything was delivered.
    /// Adapters reconnect by themselves and report only errors that an operator must fix.
    ///
    /// # Errors
    /// A retryable error means: call again, the pipeline backs off. Any other one ends the run.
    ///
    /// # Cancel safety
    /// A dropped call loses no delivery: what was taken from the broker comes with the next call.
    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error>;

    /// True if the source holds nothing to deliver at this moment; used by `--until-empty`. `None`: unknown at this moment
    /// or, without [`Capabilities::reports_idle`], always.
    async fn is_idle(&mut self) -> Option<bool> {
        None
    }

    /// Stops the deliveries of single partitions, where the broker can.
    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        None
    }

    /// The consumer's reports besides its deliveries. Called once, before the first `receive`.
    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        None
    }

    /// How the source fares. The adapter keeps it current; readiness, metrics and logs read it.
    fn health(&self) -> Option<Arc<SourceHealth>> {
        None
    }

    /// Stops taking messages and returns prefetched ones to the broker. Called once, after the last
    /// settlement was flushed.
    ///
    /// # Errors
    /// Reported and otherwise ignored: nothing acked is lost by it.
    async fn close(&mut self) -> Result<(), Error>;
}

/// A consumer whose type is chosen at run time.
#[async_trait]
impl<C: Consumer + ?Sized> Consumer for Box<C> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn acker(&self) -> Arc<dyn Acker> {
        (**self).acker()
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        (**self).receive().await
    }

    async fn is_idle(&mut self) -> Option<bool> {
        (**self).is_idle().await
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        (**self).flow()
    }

    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        (**self).notices()
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        (**self).health()
    }

    async fn close(&mut self) -> Result<(), Error> {
        (**self).close().await
    }
}

/// How one settlement ended. None of these is a failure of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled {
    /// The broker, or the offset to be committed, has it.
    Done,
    /// The delivery was no longer ours (channel closed, partition revoked, handle expired): the message is redelivered.
    TooLate,
}

/// Settles deliveries at the broker, in batches.
#[async_trait]
pub trait Acker: Send + Sync + 'static {
    /// Settles a batch; one result for each item, in order. Items of one batch may be settled in any order.
    ///
    /// An error on an item means *not settled*; a retryable one is repeated by the pipeline. An adapter that can
    /// acknowledge many deliveries at once does so here.
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>>;

    /// Keeps deliveries alive for another heartbeat period; one result for each item, in order.
    /// Called only if [`Capabilities::heartbeat`] is set.
    async fn extend(&self, tags: &[Tag]) -> Vec<Result<Settled, Error>> {
        tags.iter().map(|_| Ok(Settled::Done)).collect()
    }
}
