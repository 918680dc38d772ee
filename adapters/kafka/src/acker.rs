//! Settles deliveries: what is acked moves its partition's watermark, what is to be retried is handed out again in place, or
//! goes to a retry topic.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use onceward::{Acker, Error, Outgoing, Settled, Settlement, Tag};

use crate::retry::forwarder::Waiting;
use crate::state::Shared;

/// The most copies that are on their way to retry topics at a time; what comes beyond waits in this process.
const COPIES: usize = 1000;

/// The acker of a [`KafkaConsumer`](crate::KafkaConsumer). Offsets are committed by the poll thread, soon after; a
/// settlement for a partition that was taken away is too late.
pub(crate) struct KafkaAcker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) waiting: Option<Arc<Waiting>>,
}

/// A copy that is to go to a retry topic: the delivery it is for, and how long it is to wait.
struct Copy {
    tag: Tag,
    after: Duration,
    outgoing: Outgoing,
}

impl Shared {
    /// The copies that go to retry topics instead of waiting here, each with its index in the batch. Each delivery is copied
    /// once, however often it is settled.
    fn copies(&self, batch: &[(Tag, Settlement)], waiting: &Waiting) -> Vec<(usize, Option<Copy>)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut copy = |(index, (tag, settlement)): (usize, &(Tag, Settlement))| {
            let Settlement::Retry { after } = *settlement else { return None };
            let own = state.assigned.get_mut(&tag.epoch).filter(|own| !own.leaving)?;
            let held = own.held.get_mut(&tag.number)?;
            if held.copying {
                return Some((index, None));
            }
            if state.copying >= COPIES {
                return None;
            }
            let outgoing = waiting.copy(&held.message, after)?;
            held.copying = true;
            state.copying += 1;
            Some((index, Some(Copy { tag: *tag, after, outgoing })))
        };
        batch.iter().enumerate().filter_map(&mut copy).collect()
    }
}

/// Sends a copy, and settles its original by it; without a confirmation the original waits in this process.
async fn copy(shared: Arc<Shared>, waiting: Arc<Waiting>, Copy { tag, after, outgoing }: Copy) {
    let settlement = match waiting.put(&outgoing).await {
        true => Settlement::Ack,
        false => Settlement::Retry { after },
    };
    // Too late is well: the partition's next owner has the original.
    let _ = shared.settle(&[(tag, settlement)]);
}

#[async_trait]
impl Acker for KafkaAcker {
    /// Never waits for a broker: a retry topic that does not answer holds up its own records only. Until its copy is
    /// confirmed the original is not settled.
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let copies = match &self.waiting {
            Some(waiting) => self.shared.copies(batch, waiting),
            None => Vec::new(),
        };
        let mut settled = Vec::with_capacity(batch.len());
        let mut rest = Vec::with_capacity(batch.len());
        let mut sent = Vec::new();
        let mut copies = copies.into_iter().peekable();
        for (index, item) in batch.iter().enumerate() {
            match copies.next_if(|(own, _)| *own == index) {
                Some((_, own)) => {
                    if let (Some(own), Some(waiting)) = (own, &self.waiting) {
                        sent.push(copy(Arc::clone(&self.shared), Arc::clone(waiting), own));
                    }
                    settled.push(Some(Settled::Done));
                }
                None => {
                    rest.push(*item);
                    settled.push(None);
                }
            }
        }
        if !sent.is_empty() {
            // They are sent in this order, and each is settled when it is confirmed.
            tokio::spawn(join_all(sent));
        }
        let mut rest = self.shared.settle(&rest).into_iter();
        settled.into_iter().map(|own| Ok(own.or_else(|| rest.next()).unwrap_or(Settled::TooLate))).collect()
    }
}
