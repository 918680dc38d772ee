//! The deliveries that are ours, with the receipt handles that settle them: [`Held`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::LONGEST_VISIBILITY;

/// Every delivery that was received and not settled. Its size is bounded by what is in flight.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    slots: HashMap<u64, Slot>,
    /// The slot that has the newest handle of a message.
    newest: HashMap<Box<str>, u64>,
}

#[derive(Debug)]
struct Slot {
    id: Box<str>,
    handle: String,
    /// When it was asked for: SQS counts its visibility from a later moment.
    received: Instant,
    extended: Instant,
    /// Not handed over yet: nobody else extends it.
    buffered: bool,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a delivery and answers its number.
    pub(crate) fn add(&self, id: &str, handle: String, received: Instant) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let slot = Slot { id: id.into(), handle, received, extended: received, buffered: true };
        state.newest.insert(slot.id.clone(), number);
        state.slots.insert(number, slot);
        number
    }

    /// It is handed over; false if it is not ours any more.
    pub(crate) fn hand_over(&self, number: u64) -> bool {
        self.lock().slots.get_mut(&number).map(|slot| slot.buffered = false).is_some()
    }

    /// The handle that deletes the message of a delivery: the newest one, since SQS may refuse, or silently ignore, an
    /// older one.
    pub(crate) fn newest_handle(&self, number: u64) -> Option<String> {
        let state = self.lock();
        let slot = state.slots.get(&number)?;
        let newest = state.newest.get(&slot.id).and_then(|newest| state.slots.get(newest));
        Some(newest.unwrap_or(slot).handle.clone())
    }

    /// The handle that changes the visibility of a delivery, and for how long it can be extended. `None` if another
    /// delivery of the message has come since, or the longest visibility is used up: it is not ours any more.
    pub(crate) fn own_handle(&self, number: u64, now: Instant) -> Option<(String, Duration)> {
        let state = self.lock();
        let slot = state.slots.get(&number)?;
        let left = LONGEST_VISIBILITY.checked_sub(now.duration_since(slot.received))?;
        let own = state.newest.get(&slot.id) == Some(&number) && left >= MARGIN * 2;
        own.then(|| (slot.handle.clone(), left - MARGIN))
    }

    /// As [`own_handle`](Self::own_handle), but of the newest delivery of its message: one that came again to this consumer is
    /// still ours.
    pub(crate) fn extending_handle(&self, number: u64, now: Instant) -> Option<(String, Duration)> {
        let newest = {
            let state = self.lock();
            let slot = state.slots.get(&number)?;
            state.newest.get(&slot.id).copied()
        };
        self.own_handle(newest.unwrap_or(number), now)
    }

    /// Notes that a delivery was extended by a call sent at `sent`.
    pub(crate) fn extended(&self, number: u64, sent: Instant) {
        if let Some(slot) = self.lock().slots.get_mut(&number) {
            slot.extended = sent;
        }
    }

    /// Forgets a delivery.
    pub(crate) fn remove(&self, number: u64) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.remove(&number)
            && state.newest.get(&slot.id) == Some(&number)
        {
            state.newest.remove(&slot.id);
        }
    }

    /// Buffered deliveries that were last extended `every` ago or longer.
    pub(crate) fn due(&self, now: Instant, every: Duration) -> Vec<u64> {
        let due = |slot: &Slot| slot.buffered && now.duration_since(slot.extended) >= every;
        self.lock().slots.iter().filter(|(_, slot)| due(slot)).map(|(number, _)| *number).collect()
    }

    /// All deliveries.
    pub(crate) fn all(&self) -> Vec<u64> {
        self.lock().slots.keys().copied().collect()
    }

    /// How many deliveries there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().slots.len()
    }
}

/// Kept from the end of the longest visibility: SQS refuses an extension beyond it, to the second.
const MARGIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn s03_nothing_is_extended_beyond_twelve_hours() {
        let (held, start) = (Held::default(), Instant::now());
        let number = held.add("m", "h".into(), start);
        assert_eq!(held.own_handle(number, start + 11 * HOUR), Some(("h".into(), HOUR - MARGIN)));
        assert_eq!(held.own_handle(number, start + 12 * HOUR - MARGIN), None);
        assert_eq!(held.own_handle(number, start + 13 * HOUR), None);
        assert_eq!(held.newest_handle(number).as_deref(), Some("h"), "it may still be deleted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_came_again_is_deleted_with_its_newest_handle_and_the_older_delivery_extends_nothing()
     {
        let (held, now) = (Held::default(), Instant::now());
        let (first, second) = (held.add("m", "old".into(), now), held.add("m", "new".into(), now));
        assert_eq!(held.newest_handle(first).as_deref(), Some("new"));
        assert_eq!(held.own_handle(first, now), None);
        assert!(held.own_handle(second, now).is_some());
        held.remove(second);
        assert_eq!(held.newest_handle(first).as_deref(), Some("old"));
        held.remove(first);
        assert_eq!((held.len(), held.newest_handle(first)), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_buffered_is_due_until_it_is_handed_over() {
        let (held, now) = (Held::default(), Instant::now());
        let number = held.add("m", "h".into(), now);
        let second = Duration::from_secs(1);
        assert!(held.due(now, second).is_empty());
        assert_eq!(held.due(now + second, second), [number]);
        held.extended(number, now + second);
        assert!(held.due(now + second, second).is_empty());
        assert!(held.hand_over(number));
        assert!(held.due(now + 9 * second, second).is_empty());
    }
}
