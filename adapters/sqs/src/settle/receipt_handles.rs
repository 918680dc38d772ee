//! Receipt handles of unsettled deliveries: [`ReceiptHandles`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::LONGEST_VISIBILITY;

/// All deliveries that were received and not settled. Bounded by the number of messages in flight.
#[derive(Debug, Default)]
pub(crate) struct ReceiptHandles(Mutex<HandleTable>);

#[derive(Debug, Default)]
struct HandleTable {
    last: u64,
    deliveries: HashMap<u64, HeldDelivery>,
    /// The delivery with the newest handle of each message.
    newest: HashMap<Box<str>, u64>,
}

#[derive(Debug)]
struct HeldDelivery {
    id: Box<str>,
    handle: String,
    /// When the receive was sent: SQS counts the visibility from a later moment.
    received: Instant,
    extended: Instant,
    /// Not delivered to the pipeline yet: no other task extends it.
    buffered: bool,
}

impl ReceiptHandles {
    fn lock(&self) -> MutexGuard<'_, HandleTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a delivery and returns its number.
    pub(crate) fn add(&self, id: &str, handle: String, received: Instant) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let delivery = HeldDelivery { id: id.into(), handle, received, extended: received, buffered: true };
        state.newest.insert(delivery.id.clone(), number);
        state.deliveries.insert(number, delivery);
        number
    }

    /// Marks a delivery as delivered to the pipeline; false if it is not ours any more.
    pub(crate) fn mark_delivered(&self, number: u64) -> bool {
        self.lock().deliveries.get_mut(&number).map(|delivery| delivery.buffered = false).is_some()
    }

    /// The handle that deletes the message of a delivery: the newest one, since SQS may reject or silently ignore an
    /// older one.
    pub(crate) fn newest_handle(&self, number: u64) -> Option<String> {
        let state = self.lock();
        let delivery = state.deliveries.get(&number)?;
        let newest = state.newest.get(&delivery.id).and_then(|newest| state.deliveries.get(newest));
        Some(newest.unwrap_or(delivery).handle.clone())
    }

    /// The handle that changes the visibility of a delivery, and for how long it can be extended. `None` if the message
    /// has been delivered again since, or the longest visibility is used up: the delivery is not ours any more.
    pub(crate) fn own_handle(&self, number: u64, now: Instant) -> Option<(String, Duration)> {
        let state = self.lock();
        let delivery = state.deliveries.get(&number)?;
        let left = LONGEST_VISIBILITY.checked_sub(now.duration_since(delivery.received))?;
        let own = state.newest.get(&delivery.id) == Some(&number) && left >= MARGIN * 2;
        own.then(|| (delivery.handle.clone(), left - MARGIN))
    }

    /// As [`own_handle`](Self::own_handle), but for the newest delivery of the message: one that was delivered again to
    /// this consumer is still ours.
    pub(crate) fn extending_handle(&self, number: u64, now: Instant) -> Option<(String, Duration)> {
        let newest = {
            let state = self.lock();
            let delivery = state.deliveries.get(&number)?;
            state.newest.get(&delivery.id).copied()
        };
        self.own_handle(newest.unwrap_or(number), now)
    }

    /// Records that a delivery was extended by a call sent at `sent`.
    pub(crate) fn extended(&self, number: u64, sent: Instant) {
        if let Some(delivery) = self.lock().deliveries.get_mut(&number) {
            delivery.extended = sent;
        }
    }

    /// Removes a delivery.
    pub(crate) fn remove(&self, number: u64) {
        let mut state = self.lock();
        if let Some(delivery) = state.deliveries.remove(&number)
            && state.newest.get(&delivery.id) == Some(&number)
        {
            state.newest.remove(&delivery.id);
        }
    }

    /// The buffered deliveries that were last extended at least `every` ago.
    pub(crate) fn due(&self, now: Instant, every: Duration) -> Vec<u64> {
        let due =
            |delivery: &HeldDelivery| delivery.buffered && now.duration_since(delivery.extended) >= every;
        self.lock()
            .deliveries
            .iter()
            .filter(|(_, delivery)| due(delivery))
            .map(|(number, _)| *number)
            .collect()
    }

    /// All deliveries.
    pub(crate) fn all(&self) -> Vec<u64> {
        self.lock().deliveries.keys().copied().collect()
    }

    /// The number of deliveries.
    pub(crate) fn len(&self) -> usize {
        self.lock().deliveries.len()
    }
}

/// The margin before the end of the longest visibility: SQS rejects an extension beyond it, to the second.
const MARGIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn nothing_is_extended_beyond_twelve_hours() {
        let (handles, start) = (ReceiptHandles::default(), Instant::now());
        let number = handles.add("m", "h".into(), start);
        assert_eq!(handles.own_handle(number, start + 11 * HOUR), Some(("h".into(), HOUR - MARGIN)));
        assert_eq!(handles.own_handle(number, start + 12 * HOUR - MARGIN), None);
        assert_eq!(handles.own_handle(number, start + 13 * HOUR), None);
        assert_eq!(handles.newest_handle(number).as_deref(), Some("h"), "it may still be deleted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_redelivered_message_is_deleted_with_its_newest_handle_and_the_older_one_extends_nothing() {
        let (handles, now) = (ReceiptHandles::default(), Instant::now());
        let (first, second) = (handles.add("m", "old".into(), now), handles.add("m", "new".into(), now));
        assert_eq!(handles.newest_handle(first).as_deref(), Some("new"));
        assert_eq!(handles.own_handle(first, now), None);
        assert!(handles.own_handle(second, now).is_some());
        handles.remove(second);
        assert_eq!(handles.newest_handle(first).as_deref(), Some("old"));
        handles.remove(first);
        assert_eq!((handles.len(), handles.newest_handle(first)), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn buffered_deliveries_are_due_until_they_are_delivered() {
        let (handles, now) = (ReceiptHandles::default(), Instant::now());
        let number = handles.add("m", "h".into(), now);
        let second = Duration::from_secs(1);
        assert!(handles.due(now, second).is_empty());
        assert_eq!(handles.due(now + second, second), [number]);
        handles.extended(number, now + second);
        assert!(handles.due(now + second, second).is_empty());
        assert!(handles.mark_delivered(number));
        assert!(handles.due(now + 9 * second, second).is_empty());
    }
}
