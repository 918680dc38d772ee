//! Times a source: from the first delivery to the last acknowledgement: [`Meter`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::Error;
use onceward::adapter::{
    Acker, Capabilities, Consumer, Delivery, FlowControl, Notice, Settled, Settlement, SourceHealth, Tag,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Counts what a source delivers and what is acknowledged.
#[derive(Debug)]
pub(super) struct Meter {
    wanted: u64,
    delivered: AtomicU64,
    acked: AtomicU64,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    /// Fires when all are acknowledged.
    done: CancellationToken,
}

impl Meter {
    /// Fires `done` once `wanted` deliveries are acknowledged.
    pub(super) fn new(wanted: u64, done: CancellationToken) -> Arc<Self> {
        let (first, last) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { wanted, delivered: AtomicU64::new(0), acked: AtomicU64::new(0), first, last, done })
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// The time it took; `None` if not all were acknowledged.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        Some(self.last.get()?.duration_since(*self.first.get()?))
    }

    fn receive(&self, deliveries: usize) {
        self.first.get_or_init(Instant::now);
        self.delivered.fetch_add(deliveries as u64, Ordering::Relaxed);
    }

    fn ack(&self, acked: u64) {
        if acked > 0 && self.acked.fetch_add(acked, Ordering::Relaxed) + acked >= self.wanted {
            self.last.get_or_init(Instant::now);
            self.done.cancel();
        }
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
