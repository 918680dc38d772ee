//! A broker for relays that records what it receives and loses confirmations.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::publisher::{Outgoing, Publisher};

/// The destination that is not there, until it is repaired.
pub(super) const NOWHERE: &str = "nowhere";

/// Keeps what reaches it. Refuses what goes to [`NOWHERE`], and of so many messages in a hundred the confirm is lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Broker {
    sent: Arc<Mutex<Vec<Outgoing>>>,
    lost_in_a_hundred: u32,
    repaired: Arc<AtomicBool>,
}

impl Broker {
    pub(super) fn that_loses(lost_in_a_hundred: u32) -> Self {
        Self { lost_in_a_hundred, ..Self::default() }
    }

    pub(super) fn repair(&self) {
        self.repaired.store(true, Ordering::SeqCst);
    }

    /// All that arrived, copies included.
    pub(super) fn sent(&self) -> Vec<Outgoing> {
        self.sent.lock().clone()
    }

    /// The numbers that arrived for each order key, without the copies.
    pub(super) fn first_arrivals(&self) -> BTreeMap<String, Vec<u32>> {
        let (mut seen, mut arrivals) = (HashSet::new(), BTreeMap::<String, Vec<u32>>::new());
        for message in self.sent() {
            if seen.insert(message.id.clone()) {
                let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
                let number = text(&message.payload).parse().expect("the payload is a number");
                let key = message.order_key.as_ref().map(text).unwrap_or_default();
                arrivals.entry(key).or_default().push(number);
            }
        }
        arrivals
    }
}

#[async_trait]
impl Publisher for Broker {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut outcomes = Vec::new();
        for message in batch {
            // Others have their turn in the middle of a batch.
            tokio::task::yield_now().await;
            if message.destination == NOWHERE && !self.repaired.load(Ordering::SeqCst) {
                outcomes.push(Err(Error::new(ErrorKind::Unavailable, "publish", "there is no such queue")));
                continue;
            }
            self.sent.lock().push(message.clone());
            outcomes.push(if fastrand::u32(..100) < self.lost_in_a_hundred {
                Err(Error::new(ErrorKind::Timeout, "publish", "no confirm"))
            } else {
                Ok(())
            });
        }
        outcomes
    }
}
