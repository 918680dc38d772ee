//! Times a source: from the first delivery to the last acknowledgement: [`Meter`].

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::Error;
use onceward::adapter::{
    Acker, Capabilities, Consumer, Delivery, FlowControl, Notice, Settled, Settlement, SourceHealth, Tag,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::handlers::Ledger;

/// Counts what a source delivers and what is acknowledged.
#[derive(Debug)]
pub(super) struct Meter {
    wanted: u64,
    /// How often each message is to be handled at least, by number.
    expected: Vec<u16>,
    ledger: Arc<Ledger>,
    /// All messages before this one were handled as often as expected.
    handled: AtomicUsize,
    delivered: AtomicU64,
    acked: AtomicU64,
    claimed: AtomicU64,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    /// Fires when all are handled and acknowledged.
    done: CancellationToken,
}

impl Meter {
    /// Fires `done` once `wanted` deliveries are acknowledged and `ledger` has each message as often as `expected`: a source may
    /// deliver a message again before it has delivered all.
    pub(super) fn new(
        wanted: u64,
        expected: Vec<u16>,
        ledger: Arc<Ledger>,
        done: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            expected,
            ledger,
            handled: AtomicUsize::new(0),
            delivered: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            claimed: AtomicU64::new(0),
            first: OnceLock::new(),
            last: OnceLock::new(),
            done,
        })
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Counts a claim that a loop has made before the messages received with it are acknowledged.
    pub(super) fn claim(&self) {
        self.claimed.fetch_add(1, Ordering::Relaxed);
    }

    /// Deliveries, claims of a loop and acknowledgements: they change as long as there is progress.
    pub(super) fn progress(&self) -> [u64; 3] {
        [&self.delivered, &self.claimed, &self.acked].map(|count| count.load(Ordering::Relaxed))
    }

    /// The time it took; `None` if not all were handled and acknowledged.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        Some(self.last.get()?.duration_since(*self.first.get()?))
    }

    fn receive(&self, deliveries: usize) {
        self.first.get_or_init(Instant::now);
        self.delivered.fetch_add(deliveries as u64, Ordering::Relaxed);
    }

    fn ack(&self, acked: u64) {
        if acked > 0
            && self.acked.fetch_add(acked, Ordering::Relaxed) + acked >= self.wanted
            && self.are_all_handled()
        {
            self.last.get_or_init(Instant::now);
            self.done.cancel();
        }
    }

    /// A message is handled before it is acknowledged, so that the last acknowledgement finds all handled. Each message is looked
    /// at until it is, and not again.
    fn are_all_handled(&self) -> bool {
        let before = self.handled.load(Ordering::Relaxed);
        let handled = self.ledger.handled().zip(&self.expected).skip(before);
        let more = handled.take_while(|(times, expected)| times >= *expected).count();
        self.handled.fetch_max(before + more, Ordering::Relaxed);
        before + more >= self.expected.len()
    }
}

/// A source that a [`Meter`] watches.
pub(super) struct Metered {
    inner: Box<dyn Consumer>,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(inner: Box<dyn Consumer>, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

#[async_trait]
impl Consumer for Metered {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(MeteredAcker { inner: self.inner.acker(), meter: Arc::clone(&self.meter) })
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let received = self.inner.receive().await?;
        if let Some(batch) = &received {
            self.meter.receive(batch.len());
        }
        Ok(received)
    }

    async fn is_idle(&mut self) -> Option<bool> {
        self.inner.is_idle().await
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        self.inner.flow()
    }

    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        self.inner.notices()
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        self.inner.health()
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.inner.close().await
    }
}

struct MeteredAcker {
    inner: Arc<dyn Acker>,
    meter: Arc<Meter>,
}

#[async_trait]
impl Acker for MeteredAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let settled = self.inner.settle(batch).await;
        let acked = batch.iter().zip(&settled).filter(|((_, settlement), settled)| {
            *settlement == Settlement::Ack && matches!(settled, Ok(Settled::Done))
        });
        self.meter.ack(acked.count() as u64);
        settled
    }

    async fn extend(&self, tags: &[Tag]) -> Vec<Result<Settled, Error>> {
        self.inner.extend(tags).await
    }
}
