//! Unsettled deliveries, and recognition of requeued messages when the broker redelivers them: [`UnsettledDeliveries`].

use std::collections::HashMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use onceward::Message;
use onceward::adapter::{Native, Settlement, Tag};
use tokio::time::Instant;

use crate::format::native::{RabbitmqForm, is_broker_header};

/// How long a settlement is kept for a requeued message; after this another worker has received it.
const FORGET_AFTER: Duration = Duration::from_secs(10 * 60);

/// Identifies a delivery: the epoch of its channel, and the tag of its first delivery.
pub(crate) type DeliveryKey = (u64, u64);

/// The state of an unsettled delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryState {
    /// The pipeline is processing it.
    InPipeline,
    /// It waits for its next attempt in this process, or is being published to a delay queue.
    AwaitingRetry,
    /// It was settled while it was requeued. `Ack` or `Reject`.
    Settled(Settlement, Instant),
}

/// An unsettled delivery.
#[derive(Debug)]
pub(crate) struct UnsettledDelivery {
    /// How often it waited in this process; each time it is delivered under another tag.
    pub(crate) round: u16,
    pub(crate) state: DeliveryState,
    pub(crate) message: Message,
    /// The tag known to the broker; `None` while the message is requeued.
    pub(crate) broker_tag: Option<u64>,
    /// A lower bound of the time at which the broker sent it under this tag; while it is requeued, the time of the
    /// requeue.
    since: Instant,
    /// How often it was requeued because of the ack timeout.
    requeues: u32,
}

/// All unsettled deliveries of a consumer.
#[derive(Debug, Default)]
pub(crate) struct UnsettledDeliveries {
    entries: HashMap<DeliveryKey, UnsettledDelivery>,
    /// The requeued ones, in the order in which they were requeued.
    requeued: Vec<DeliveryKey>,
}

/// A redelivery of a known message.
pub(crate) enum Redelivery {
    /// The message was requeued and is still unsettled.
    Unsettled,
    /// The message was requeued and settled afterwards.
    Settled(Settlement),
}

impl UnsettledDeliveries {
    pub(crate) fn insert(&mut self, key: DeliveryKey, message: Message, since: Instant) {
        let entry = UnsettledDelivery {
            round: 0,
            state: DeliveryState::InPipeline,
            message,
            broker_tag: Some(key.1),
            since,
            requeues: 0,
        };
        self.entries.insert(key, entry);
    }

    pub(crate) fn get_mut(&mut self, key: DeliveryKey) -> Option<&mut UnsettledDelivery> {
        self.entries.get_mut(&key)
    }

    /// The delivery for a tag that is in the pipeline, if it is the latest tag issued for it.
    pub(crate) fn current(&mut self, tag: Tag) -> Option<&mut UnsettledDelivery> {
        let (round, key) = split_tag(tag);
        self.entries
            .get_mut(&key)
            .filter(|entry| entry.round == round && entry.state == DeliveryState::InPipeline)
    }

    /// Settles a delivery. Returns the tag to settle on the broker, if a frame must be sent now.
    pub(crate) fn settle(&mut self, key: DeliveryKey, settlement: Settlement) -> Option<u64> {
        let entry = self.entries.get_mut(&key)?;
        match (entry.broker_tag, settlement) {
            (None, Settlement::Ack | Settlement::Reject) => {
                entry.state = DeliveryState::Settled(settlement, Instant::now());
                None
            }
            // It is requeued already.
            (None, _) => {
                self.entries.remove(&key);
                self.requeued.retain(|other| *other != key);
                None
            }
            (Some(broker_tag), _) => {
                self.entries.remove(&key);
                Some(broker_tag)
            }
        }
    }

    pub(crate) fn contains(&self, key: DeliveryKey) -> bool {
        self.entries.contains_key(&key)
    }

    /// True if messages wait in this process or are being published to a delay queue.
    pub(crate) fn has_delayed(&self) -> bool {
        self.entries.values().any(|entry| entry.state == DeliveryState::AwaitingRetry)
    }

    /// The number of deliveries that the broker counts as unacknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.entries.len() - self.requeued.len()
    }

    /// When the oldest unsettled delivery was received.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| entry.broker_tag.is_some()).map(|entry| entry.since).min()
    }

    /// Marks the deliveries received before `then` as requeued. Returns the tags to requeue on the broker, each with
    /// the delivery count of its message (the broker's count where it has one).
    pub(crate) fn release_before(&mut self, then: Instant) -> Vec<(u64, u32)> {
        let mut tags = Vec::new();
        for (key, entry) in &mut self.entries {
            if entry.since <= then
                && let Some(broker_tag) = entry.broker_tag.take()
            {
                entry.requeues += 1;
                entry.since = Instant::now();
                tags.push((broker_tag, delivery_count(&entry.message).saturating_add(entry.requeues)));
                self.requeued.push(*key);
            }
        }
        tags.sort_unstable();
        tags
    }

    /// Recognises a redelivery of a requeued message. Identical copies count as the same message: the order in which
    /// they are settled does not matter.
    pub(crate) fn match_redelivery(
        &mut self,
        delivery: &lapin::message::Delivery,
        since: Instant,
    ) -> Option<Redelivery> {
        if self.requeued.is_empty() || !delivery.redelivered {
            return None;
        }
        let is_redelivered = |key: &DeliveryKey| {
            self.entries.get(key).is_some_and(|entry| is_same_message(&entry.message, delivery))
        };
        let index = self.requeued.iter().position(is_redelivered)?;
        let key = self.requeued.remove(index);
        let entry = self.entries.get_mut(&key)?;
        if let DeliveryState::Settled(settlement, _) = entry.state {
            self.entries.remove(&key);
            return Some(Redelivery::Settled(settlement));
        }
        entry.broker_tag = Some(delivery.delivery_tag);
        // The broker sent it after the requeue.
        entry.since = entry.since.max(since);
        Some(Redelivery::Unsettled)
    }

    /// Handles a closed channel: the broker has requeued all its messages. With `forget`, redeliveries are not
    /// recognised.
    pub(crate) fn channel_ended(&mut self, forget: bool) {
        if forget {
            self.entries.clear();
            self.requeued.clear();
            return;
        }
        self.release_before(Instant::now());
    }

    /// Removes settlements of messages that another worker has received.
    pub(crate) fn remove_expired(&mut self) {
        let is_over = |entry: &UnsettledDelivery| matches!(entry.state, DeliveryState::Settled(_, at) if at.elapsed() > FORGET_AFTER);
        if self.requeued.iter().any(|key| self.entries.get(key).is_none_or(is_over)) {
            self.entries.retain(|_, entry| !is_over(entry));
            self.requeued.retain(|key| self.entries.contains_key(key));
        }
    }
}

/// The number of previous deliveries, where the broker counts them (quorum queues).
pub(crate) fn delivery_count(message: &Message) -> u32 {
    let count = message.header("x-delivery-count").and_then(|count| std::str::from_utf8(count).ok());
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn is_same_message(message: &Message, delivery: &lapin::message::Delivery) -> bool {
    let Some(form) = message.native().and_then(Native::get::<RabbitmqForm>) else { return false };
    form.properties.message_id() == delivery.properties.message_id()
        && message.payload()[..] == delivery.data[..]
        && form.exchange == delivery.exchange
        && form.routing_key == delivery.routing_key
        && form.properties.timestamp() == delivery.properties.timestamp()
        && form.properties.correlation_id() == delivery.properties.correlation_id()
        && producer_headers(&form.properties).eq(producer_headers(&delivery.properties))
}

/// The headers without the broker's own counters, which grow.
fn producer_headers(properties: &BasicProperties) -> impl Iterator<Item = (&ShortString, &AMQPValue)> {
    let all = properties.headers().iter().flat_map(|table| table.inner());
    all.filter(|(name, _)| !is_broker_header(name.as_str()) && name.as_str() != "x-acquired-count")
}

/// The retry round is stored above the tag: 2^48 messages on one channel take years.
const ROUND_SHIFT: u32 = 48;

/// Splits a tag into round and delivery key.
pub(crate) fn split_tag(tag: Tag) -> (u16, DeliveryKey) {
    let round = u16::try_from(tag.number >> ROUND_SHIFT).unwrap_or(u16::MAX);
    (round, (tag.epoch, tag.number & ((1 << ROUND_SHIFT) - 1)))
}

/// Builds the tag for a round of a delivery.
pub(crate) fn build_tag((epoch, number): DeliveryKey, round: u16) -> Tag {
    Tag { epoch, number: u64::from(round) << ROUND_SHIFT | number }
}

#[cfg(test)]
mod tests {
    use lapin::message::Delivery;

    use super::*;
    use crate::message;

    fn delivery(tag: u64, id: &str, redelivered: bool, count: Option<i64>) -> Delivery {
        let mut delivery = Delivery::mock(tag, "".into(), "orders".into(), redelivered, b"pay".to_vec());
        let mut headers = lapin::types::FieldTable::default();
        if let Some(count) = count {
            headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(count));
        }
        delivery.properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers);
        delivery
    }

    fn unsettled(ids: &[&str]) -> UnsettledDeliveries {
        let mut unsettled = UnsettledDeliveries::default();
        for (number, id) in (1..).zip(ids) {
            let message = message::to_message(
                delivery(number, id, false, None),
                "orders".into(),
                None,
                &Default::default(),
            );
            unsettled.insert((1, number), message, Instant::now());
        }
        unsettled
    }

    #[test]
    fn a_requeued_message_is_recognised_once_and_keeps_its_key() {
        let mut unsettled = unsettled(&["a", "b"]);
        assert_eq!(unsettled.release_before(Instant::now()), [(1, 1), (2, 1)]);
        assert_eq!((unsettled.unacknowledged(), unsettled.oldest()), (0, None));
        assert!(
            unsettled.match_redelivery(&delivery(3, "c", true, Some(1)), Instant::now()).is_none(),
            "another message"
        );
        assert!(
            unsettled.match_redelivery(&delivery(3, "b", false, None), Instant::now()).is_none(),
            "a copy that is new"
        );
        assert!(matches!(
            unsettled.match_redelivery(&delivery(4, "b", true, Some(1)), Instant::now()),
            Some(Redelivery::Unsettled)
        ));
        assert!(
            unsettled.match_redelivery(&delivery(5, "b", true, Some(1)), Instant::now()).is_none(),
            "it came once"
        );
        assert_eq!(unsettled.settle((1, 2), Settlement::Ack), Some(4));
        assert!(!unsettled.contains((1, 2)) && unsettled.contains((1, 1)));
    }

    #[test]
    fn a_settlement_of_a_requeued_message_is_applied_on_redelivery() {
        let mut unsettled = unsettled(&["a", "b", "c"]);
        unsettled.release_before(Instant::now());
        assert_eq!(unsettled.settle((1, 1), Settlement::Ack), None);
        assert_eq!(unsettled.settle((1, 2), Settlement::Abandon), None);
        let back = unsettled.match_redelivery(&delivery(4, "a", true, None), Instant::now());
        assert!(matches!(back, Some(Redelivery::Settled(Settlement::Ack))));
        assert!(
            unsettled.match_redelivery(&delivery(5, "b", true, None), Instant::now()).is_none(),
            "it was given up"
        );
        assert!(!unsettled.contains((1, 1)) && !unsettled.contains((1, 2)) && unsettled.contains((1, 3)));
    }

    #[test]
    fn only_the_tag_of_the_last_round_settles() {
        let mut unsettled = unsettled(&["a"]);
        unsettled.get_mut((1, 1)).unwrap().round = 2;
        assert!(unsettled.current(build_tag((1, 1), 1)).is_none());
        assert!(unsettled.current(build_tag((1, 1), 2)).is_some());
        assert_eq!(split_tag(build_tag((7, 9), 3)), (3, (7, 9)));
    }

    #[test]
    fn a_closed_channel_keeps_or_forgets_its_deliveries() {
        for forget in [false, true] {
            let mut unsettled = unsettled(&["a"]);
            unsettled.channel_ended(forget);
            assert_eq!(
                unsettled.match_redelivery(&delivery(1, "a", true, None), Instant::now()).is_some(),
                !forget
            );
        }
    }
}
