//! A publisher that keeps its messages, with injected faults: [`MemoryPublisher`].

use parking_lot::Mutex;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::faults::{FaultPlan, Faults, Operation};
use super::process::Process;
use crate::dead_letter::HEADER_ID;
use crate::error::{Error, ErrorKind};
use crate::message::{Message, MessageBuilder};
use crate::publisher::{Outgoing, Publisher};

/// Keeps every message that reached it, whether or not its confirmation did. Its faults are those of a
/// [`FaultPlan`], which it derefs to: a reply that is lost leaves the message published and the publish failed.
#[derive(Clone, Debug)]
pub struct MemoryPublisher {
    plan: Arc<FaultPlan>,
    sent: Arc<Mutex<Vec<Outgoing>>>,
    limit: Arc<AtomicUsize>,
}

impl Default for MemoryPublisher {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryPublisher {
    /// Without a fault so far.
    pub fn new() -> Self {
        Self::with(Faults::NONE)
    }

    /// With these chances.
    pub fn with(faults: Faults) -> Self {
        Self {
            plan: Arc::new(FaultPlan::new(faults, &Process::new())),
            sent: Arc::default(),
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// Another way to the same destination, for `process` and with faults of its own.
    #[must_use]
    pub fn inside(&self, faults: Faults, process: &Process) -> Self {
        let (sent, limit) = (Arc::clone(&self.sent), Arc::clone(&self.limit));
        Self { plan: Arc::new(FaultPlan::new(faults, process)), sent, limit }
    }

    /// Everything that was published, in order; repeats included.
    pub fn sent(&self) -> Vec<Outgoing> {
        self.sent.lock().clone()
    }

    /// From now on a message whose payload and headers have more than `bytes` bytes is too large for the destination.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    fn fits(&self, outgoing: &Outgoing) -> bool {
        let headers: usize = outgoing.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        outgoing.payload.len() + headers <= self.limit.load(Ordering::Relaxed)
    }

    /// `outgoing` as a consumer would receive it.
    pub fn as_delivered(outgoing: &Outgoing) -> MessageBuilder {
        let message = Message::builder(outgoing.payload.clone());
        let message = match &outgoing.order_key {
            Some(key) => message.order_key(key.clone()),
            None => message,
        };
        let message = if outgoing.id.is_empty() { message } else { message.message_id(&outgoing.id) };
        let message = match outgoing.own_id.as_str() {
            "" => message,
            id => message.header(HEADER_ID, id.to_owned()),
        };
        outgoing
            .headers
            .iter()
            .fold(message, |message, (name, value)| message.header(name.as_str(), value.clone()))
    }
}

impl Deref for MemoryPublisher {
    type Target = FaultPlan;

    fn deref(&self) -> &FaultPlan {
        &self.plan
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let apply = async {
            let fitting = batch.iter().filter(|message| self.fits(message)).cloned();
            self.sent.lock().extend(fitting);
        };
        let published = self.plan.call(Operation::Publish, Vec::new, |()| Vec::new(), apply).await;
        let too_large = || {
            Error::new(ErrorKind::TooLarge, "publish a message", "it is larger than the destination takes")
        };
        batch
            .iter()
            .map(|message| match &published {
                Ok(()) if !self.fits(message) => Err(too_large()),
                published => published.as_ref().copied().map_err(Error::clone),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fault;

    #[tokio::test(start_paused = true)]
    async fn a_lost_confirmation_leaves_the_message_published_and_a_refusal_does_not() {
        let publisher = MemoryPublisher::new();
        publisher.next(Operation::Publish, Fault::Refused);
        publisher.next(Operation::Publish, Fault::ReplyLost);
        let message = Outgoing { id: "1".into(), ..Outgoing::default() };
        let batch = [message];
        assert!(publisher.publish(&batch).await[0].is_err());
        assert_eq!(publisher.sent().len(), 0);
        assert!(publisher.publish(&batch).await[0].is_err());
        assert_eq!(publisher.sent().len(), 1);
        assert!(publisher.publish(&batch).await[0].is_ok());
        assert_eq!(publisher.sent().len(), 2);
    }
}
