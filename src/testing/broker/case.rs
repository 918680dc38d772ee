//! The consumer under test, and helpers that receive with a time limit.

use std::collections::BTreeSet;
use std::time::Duration;

use super::BrokerHarness;
use crate::consumer::{Consumer, Settled};
use crate::delivery::{Delivery, Settlement, Tag};
use crate::error::Error;

/// An open consumer.
pub(super) struct BrokerCase<C> {
    pub(super) consumer: C,
    patience: Duration,
    quiet: Duration,
}

/// `count` payloads that name their origin.
pub(super) fn payloads(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("message {number}")).collect()
}

pub(super) fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let text = |delivery: &Delivery| String::from_utf8_lossy(delivery.message.payload()).into_owned();
    deliveries.iter().map(text).collect()
}

pub(super) fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

pub(super) fn tags(deliveries: &[Delivery]) -> Vec<Tag> {
    deliveries.iter().map(|delivery| delivery.tag).collect()
}

impl<C: Consumer> BrokerCase<C> {
    /// Opens, or reopens, the consumer.
    pub(super) async fn open<H: BrokerHarness<Consumer = C>>(harness: &H) -> Self {
        Self { consumer: harness.open().await, patience: harness.patience(), quiet: harness.quiet() }
    }

    /// Publishes `count` messages, opens the consumer and receives them.
    pub(super) async fn with<H: BrokerHarness<Consumer = C>>(
        harness: &H,
        count: usize,
    ) -> (Self, Vec<Delivery>) {
        harness.publish(&payloads(count)).await;
        let mut case = Self::open(harness).await;
        let deliveries = case.take(count).await;
        (case, deliveries)
    }

    /// The next `count` deliveries.
    pub(super) async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < count {
            let received = tokio::time::timeout(self.patience, self.consumer.receive()).await;
            let batch = match received {
                Ok(Ok(Some(batch))) => batch,
                Ok(Ok(None)) => panic!("the source ended after {:?}", texts(&deliveries)),
                Ok(Err(error)) if error.is_retryable() => continue,
                Ok(Err(error)) => panic!("receive failed: {error:?}"),
                Err(_) => panic!("nothing more came after {:?}", texts(&deliveries)),
            };
            assert!(!batch.is_empty(), "a batch holds at least one delivery");
            deliveries.extend(batch);
        }
        deliveries
    }

    /// Takes deliveries until each of `expected` has come. A broker may bring some of them more than once.
    pub(super) async fn take_each(&mut self, mut expected: BTreeSet<String>) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while !expected.is_empty() {
            let more = self.take(1).await;
            for text in texts(&more) {
                expected.remove(&text);
            }
            deliveries.extend(more);
            assert!(deliveries.len() < 10_000, "these never come: {expected:?}");
        }
        deliveries
    }

    /// What still comes until it is quiet or the source ends.
    pub(super) async fn rest(&mut self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while let Ok(received) = tokio::time::timeout(self.quiet, self.consumer.receive()).await {
            match received {
                Ok(Some(batch)) => deliveries.extend(batch),
                Ok(None) => break,
                Err(error) => assert!(error.is_retryable(), "receive failed: {error:?}"),
            }
        }
        deliveries
    }

    /// Settles `tags` as the pipeline would, in one call.
    pub(super) async fn settle(&self, tags: &[Tag], settlement: Settlement) {
        let batch: Vec<_> = tags.iter().map(|tag| (*tag, settlement)).collect();
        self.settle_batch(&batch).await;
    }

    pub(super) async fn settle_batch(&self, batch: &[(Tag, Settlement)]) {
        let results = self.consumer.acker().settle(batch).await;
        assert_eq!(results.len(), batch.len(), "one result for each item");
        for ((tag, settlement), result) in batch.iter().zip(results) {
            assert!(is_done(&result), "{settlement:?} of {tag:?} ended with {result:?}");
        }
    }

    /// Closes the consumer as the pipeline would.
    pub(super) async fn close(mut self) {
        if let Err(error) = self.consumer.close().await {
            panic!("close failed: {error:?}");
        }
    }
}

pub(super) fn is_done(result: &Result<Settled, Error>) -> bool {
    matches!(result, Ok(Settled::Done))
}
