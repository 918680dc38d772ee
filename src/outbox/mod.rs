//! Messages that commit together with an effect and go out afterwards: the contract of an [`OutboxStore`], and the
//! [`Relay`] that empties it.
//!
//! ```text
//! handler's transaction: effect + completion + row ──commit──▶ outbox ──relay: take → publish, confirmed → mark──▶ broker
//! ```
//!
//! A handler that published by itself could die between its commit and the publish, and the event would be lost; or
//! publish before a commit that fails, and the event would be untrue. A row in the effect's own transaction is neither.
//! The relay publishes *at least once*: if it dies between confirm and mark, the row is sent again. Its
//! [`id`](crate::Outgoing::id) is stored with the row, so the copy has the same one, and a consumer downstream that
//! takes the message id as its key has the effect once.

mod counts;
mod relay;
mod turn;
mod turns;

use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind};
use crate::publisher::Outgoing;

pub use counts::RelayCounts;
pub use relay::{Relay, RelayConfig};
pub use turns::{Head, KeyTurns};

/// The longest [order key](Outgoing::order_key) that every outbox keeps, in bytes.
pub const LONGEST_ORDER_KEY: usize = 1_024;

/// A row that a relay has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its number in the outbox.
    pub seq: i64,
    /// Attempts to publish it that failed.
    pub attempts: u32,
    /// The message to publish.
    pub message: Outgoing,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOutcome {
    /// The broker has confirmed it.
    Published,
    /// It may or may not have arrived, and is sent again.
    Failed {
        /// Not before this delay.
        retry_in: Duration,
        /// The error, for operators.
        error: String,
    },
}

/// How much a relay takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeLimits {
    /// Rows with an order key and rows without one, so many of each at most.
    pub rows: u32,
    /// Rows of one order key, at most.
    pub per_key: u32,
    /// Payload bytes, at most; a single larger row is taken alone.
    pub bytes: u64,
}

/// What waits in an outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Rows that are not published.
    pub waiting: u64,
    /// Of these, rows whose last attempt failed.
    pub failing: u64,
    /// Rows that are not failing themselves, and wait behind a failing one of their order key.
    pub held: u64,
    /// How long the oldest has waited: the lag.
    pub oldest: Option<Duration>,
    /// Published rows that are still kept.
    pub kept: u64,
    /// Some of the failing rows, those with the most attempts first.
    pub worst: Vec<FailingRow>,
}

/// A row whose last attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailingRow {
    /// Its number in the outbox.
    pub seq: i64,
    /// The id it is published with.
    pub id: String,
    /// Where it is to go.
    pub destination: String,
    /// Attempts that failed.
    pub attempts: u32,
    /// The error.
    pub error: String,
}

/// Keeps rows for relays. Several relays, in any processes, may work on one outbox at once.
#[async_trait]
pub trait OutboxStore: Send + Sync + 'static {
    /// The exclusive right to rows. Dropped, or with its process, it gives them back.
    type Taken: Send + 'static;

    /// Takes rows that are due, so that no other relay has any of them at the same time. Of an order key it takes a run
    /// that begins with its oldest unpublished row, or nothing: a row that is not due yet holds back those behind it.
    /// Over several calls every order key gets its turn, regardless of the others. `None`: nothing is due.
    ///
    /// # Errors
    /// [`Error`] if the outbox cannot be read; nothing is taken then.
    ///
    /// # Cancel safety
    /// A dropped call has taken nothing.
    async fn take(&self, limits: &TakeLimits) -> Result<Option<(Self::Taken, Vec<OutboxRow>)>, Error>;

    /// Records the outcomes of rows, by their numbers, and releases all that were taken.
    ///
    /// # Errors
    /// [`Error`]: the rows may be sent again.
    async fn settle(&self, taken: Self::Taken, outcomes: Vec<(i64, RowOutcome)>) -> Result<(), Error>;

    /// Waits until rows may have come, at most so long. It may return early for no reason; a lost wake-up costs the rest
    /// of the wait and nothing else.
    async fn wait(&self, at_most: Duration);

    /// Removes at most `limit` rows that were published longer than `keep` ago, and answers how many.
    ///
    /// # Errors
    /// [`Error`] if the outbox cannot be written.
    async fn clean(&self, keep: Duration, limit: u32) -> Result<u64, Error>;

    /// What waits.
    ///
    /// # Errors
    /// [`Error`] if the outbox cannot be read.
    async fn status(&self) -> Result<OutboxStatus, Error>;
}

/// What every outbox refuses before it writes: its adapters ask here, so that they refuse alike.
///
/// # Errors
/// [`Error`] if the message has no destination, its order key is longer than [`LONGEST_ORDER_KEY`], or one of its texts holds
/// a NUL, which not every database can keep.
pub fn acceptable(message: &Outgoing) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::new(ErrorKind::Internal, "write to the outbox", what));
    if message.destination.is_empty() {
        return wrong("the message has no destination; name a queue, a topic or an exchange".to_owned());
    }
    let order_key = message.order_key.as_ref().map_or(0, |key| key.len());
    if order_key > LONGEST_ORDER_KEY {
        return wrong(format!("the order key has {order_key} bytes; at most {LONGEST_ORDER_KEY}"));
    }
    let names = message.headers.iter().map(|(name, _)| name.as_str());
    if names.chain([message.id.as_str(), message.destination.as_str()]).any(|text| text.contains('\0')) {
        return wrong("its id, its destination or the name of a header contains a NUL".to_owned());
    }
    Ok(())
}
