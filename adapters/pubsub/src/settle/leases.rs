//! The unsettled deliveries, each with the client library's handle that keeps its lease: [`Leases`].

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use google_cloud_pubsub::subscriber::handler::Handler;
use onceward::Error;
use onceward::adapter::Settled;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error;

/// An ack that Pub/Sub has not confirmed yet; each clone has its outcome.
pub(crate) type PendingAck = Shared<BoxFuture<'static, Result<Settled, Error>>>;

/// The deliveries held by this consumer. The client library extends the lease of each until its handle is used or
/// dropped; dropping it returns the message.
pub(crate) struct Leases {
    table: Mutex<LeasedTable>,
    settled: Notify,
    max_messages: usize,
    max_bytes: u64,
}

#[derive(Default)]
struct LeasedTable {
    held: HashMap<u64, LeasedMessage>,
    last_number: u64,
    bytes: u64,
    is_closed: bool,
}

struct LeasedMessage {
    state: LeasedState,
    bytes: u64,
}

enum LeasedState {
    Held(Handler),
    Acking(PendingAck),
}

/// The first half of an ack.
pub(crate) enum BegunAck {
    /// There is nothing to wait for.
    Answered(Settled),
    /// Pub/Sub confirms acks of this subscription.
    Pending(PendingAck),
}

impl Leases {
    pub(crate) fn new(max_messages: usize, max_bytes: u64) -> Self {
        Self { table: Mutex::default(), settled: Notify::new(), max_messages, max_bytes }
    }

    /// Adds a delivery of so many bytes and returns its number; `None`, and the message is returned, after
    /// [`release_all`](Self::release_all).
    pub(crate) fn add(&self, handler: Handler, bytes: u64) -> Option<u64> {
        let mut table = self.table.lock();
        if table.is_closed {
            return None;
        }
        table.last_number += 1;
        table.bytes += bytes;
        let number = table.last_number;
        table.held.insert(number, LeasedMessage { state: LeasedState::Held(handler), bytes });
        Some(number)
    }

    /// True if another message may be received.
    pub(crate) fn has_room(&self) -> bool {
        let table = self.table.lock();
        table.held.len() < self.max_messages && table.bytes < self.max_bytes
    }

    /// Waits until another message may be received. For a single caller.
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.settled.notified().await;
        }
    }

    /// Acks a delivery. One whose ack has to be confirmed stays until [`end`](Self::end).
    pub(crate) fn ack(&self, number: u64, subscription: &Arc<str>) -> BegunAck {
        let mut table = self.table.lock();
        let Some(lease) = table.take(number) else { return BegunAck::Answered(Settled::TooLate) };
        let pending = match lease.state {
            LeasedState::Held(Handler::ExactlyOnce(handler)) => {
                let subscription = Arc::clone(subscription);
                let confirmed = async move {
                    match handler.confirmed_ack().await {
                        Ok(()) => Ok(Settled::Done),
                        Err(refused) => {
                            error::refused_ack(&subscription, &refused).map_or(Ok(Settled::TooLate), Err)
                        }
                    }
                };
                confirmed.boxed().shared()
            }
            LeasedState::Held(handler) => {
                handler.ack();
                drop(table);
                self.settled.notify_one();
                return BegunAck::Answered(Settled::Done);
            }
            LeasedState::Acking(pending) => pending,
        };
        table.bytes += lease.bytes;
        table.held.insert(
            number,
            LeasedMessage { state: LeasedState::Acking(pending.clone()), bytes: lease.bytes },
        );
        BegunAck::Pending(pending)
    }

    /// Ends a delivery whose ack was answered.
    pub(crate) fn end(&self, number: u64) {
        drop(self.table.lock().take(number));
        self.settled.notify_one();
    }

    /// Takes the handle of a delivery that is not to be acked. `None`: it was settled before, or its ack is on its way.
    pub(crate) fn take(&self, number: u64) -> Option<Handler> {
        let mut table = self.table.lock();
        if !matches!(table.held.get(&number)?.state, LeasedState::Held(_)) {
            return None;
        }
        let lease = table.take(number)?;
        drop(table);
        self.settled.notify_one();
        match lease.state {
            LeasedState::Held(handler) => Some(handler),
            LeasedState::Acking(_) => None,
        }
    }

    /// Returns all messages that are not acked, in the order of their delivery, and those of later calls of
    /// [`add`](Self::add).
    pub(crate) fn release_all(&self) {
        let mut released: Vec<_> = {
            let mut table = self.table.lock();
            table.is_closed = true;
            table.bytes = 0;
            table.held.drain().collect()
        };
        released.sort_unstable_by_key(|(number, _)| *number);
        for (_, lease) in released {
            drop(lease);
        }
    }
}

impl LeasedTable {
    fn take(&mut self, number: u64) -> Option<LeasedMessage> {
        let lease = self.held.remove(&number)?;
        self.bytes = self.bytes.saturating_sub(lease.bytes);
        Some(lease)
    }
}
