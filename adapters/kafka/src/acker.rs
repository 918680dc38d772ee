//! Settles deliveries: an acked record moves its partition's watermark, a record to retry is redelivered in its place or
//! copied to a retry topic.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures_util::future::join_all;
use onceward::Error;
use onceward::adapter::{Acker, Settled, Settlement, Tag};

use crate::handle::Handle;
use crate::retry::forwarder::RetryForwarder;
use crate::state::delivery::RetryCopy;

/// The acker of a [`KafkaConsumer`](crate::KafkaConsumer). The poll thread commits offsets soon after. A settlement for a
/// revoked partition is too late.
pub(crate) struct KafkaAcker {
    pub(crate) handle: Arc<Handle>,
    pub(crate) forwarder: Option<Arc<RetryForwarder>>,
}

/// Publishes a copy and settles its original. Without a confirmation the original waits in this process.
async fn forward(handle: Arc<Handle>, forwarder: Arc<RetryForwarder>, copy: RetryCopy) {
    let settlement = match forwarder.publish(&copy.outgoing).await {
        true => Settlement::Ack,
        false => Settlement::Retry { after: copy.after },
    };
    // If it is too late, the partition's next owner delivers the original.
    let _ = handle.with(|state| state.settle(&[(copy.tag, settlement)], Instant::now()));
}

#[async_trait]
impl Acker for KafkaAcker {
    /// Never waits for a broker: a retry topic that does not respond only delays its own records. The original is settled when
    /// its copy is confirmed.
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let copies = match &self.forwarder {
            Some(forwarder) => self
                .handle
                .with(|state| state.start_copies(batch, |message, after| forwarder.copy(message, after))),
            None => Vec::new(),
        };
        let mut settled = Vec::with_capacity(batch.len());
        let mut rest = Vec::with_capacity(batch.len());
        let mut forwarded = Vec::new();
        let mut copies = copies.into_iter().peekable();
        for (index, item) in batch.iter().enumerate() {
            match copies.next_if(|(own, _)| *own == index) {
                Some((_, copy)) => {
                    if let (Some(copy), Some(forwarder)) = (copy, &self.forwarder) {
                        forwarded.push(forward(Arc::clone(&self.handle), Arc::clone(forwarder), copy));
                    }
                    settled.push(Some(Settled::Done));
                }
                None => {
                    rest.push(*item);
                    settled.push(None);
                }
            }
        }
        if !forwarded.is_empty() {
            // They are sent in this order, and each original is settled when its copy is confirmed.
            tokio::spawn(join_all(forwarded));
        }
        let mut rest = self.handle.with(|state| state.settle(&rest, Instant::now())).into_iter();
        settled.into_iter().map(|own| Ok(own.or_else(|| rest.next()).unwrap_or(Settled::TooLate))).collect()
    }
}
