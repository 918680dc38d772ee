//! The deliveries that are not settled, and how a message that was given back is recognised when it returns: [`Held`].

use std::collections::HashMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use onceward::{Message, Native, Settlement, Tag};
use tokio::time::Instant;

use crate::native::{RabbitForm, is_of_the_broker};

/// How long a settlement waits for its message to return, before another worker has it for certain.
const FORGET_AFTER: Duration = Duration::from_secs(10 * 60);

/// Which delivery: the channel's epoch, and the tag with which the message came first.
pub(crate) type Name = (u64, u64);

/// Where an unsettled delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The pipeline has it.
    Pipeline,
    /// It waits for its next attempt in this process, or is on its way to a wait queue.
    Waiting,
    /// It was settled while the broker had it. `Ack` or `Reject`.
    Settled(Settlement, Instant),
}

/// An unsettled delivery.
#[derive(Debug)]
pub(crate) struct Entry {
    /// How often it waited here; each time it comes under another tag.
    pub(crate) round: u16,
    pub(crate) place: Place,
    pub(crate) message: Message,
    /// Its tag on the wire; `None` while the broker has the message.
    pub(crate) wire: Option<u64>,
    /// The broker sent it under that tag no earlier than this; while the broker has it, when it was given back.
    since: Instant,
    /// How often it was given back before the ack timeout.
    returns: u32,
}

/// All unsettled deliveries of a consumer.
#[derive(Debug, Default)]
pub(crate) struct Held {
    entries: HashMap<Name, Entry>,
    /// Those that the broker has, in the order in which they were given back.
    away: Vec<Name>,
}

/// What a redelivery is.
pub(crate) enum Returned {
    /// A message that was given back, and is still held.
    Held,
    /// A message that was given back and has been settled since.
    Settled(Settlement),
}

impl Held {
    pub(crate) fn insert(&mut self, name: Name, message: Message, since: Instant) {
        let entry =
            Entry { round: 0, place: Place::Pipeline, message, wire: Some(name.1), since, returns: 0 };
        self.entries.insert(name, entry);
    }

    pub(crate) fn get_mut(&mut self, name: Name) -> Option<&mut Entry> {
        self.entries.get_mut(&name)
    }

    /// The entry for a tag that the pipeline has, if it is the last one that the pipeline got for it.
    pub(crate) fn current(&mut self, tag: Tag) -> Option<&mut Entry> {
        let (round, name) = split(tag);
        self.entries.get_mut(&name).filter(|entry| entry.round == round && entry.place == Place::Pipeline)
    }

    /// Settles a delivery; answers its tag on the wire if the broker must be informed now.
    pub(crate) fn settle(&mut self, name: Name, settlement: Settlement) -> Option<u64> {
        let entry = self.entries.get_mut(&name)?;
        match (entry.wire, settlement) {
            (None, Settlement::Ack | Settlement::Reject) => {
                entry.place = Place::Settled(settlement, Instant::now());
                None
            }
            // The broker has it already.
            (None, _) => {
                self.entries.remove(&name);
                self.away.retain(|other| *other != name);
                None
            }
            (Some(wire), _) => {
                self.entries.remove(&name);
                Some(wire)
            }
        }
    }

    pub(crate) fn contains(&self, name: Name) -> bool {
        self.entries.contains_key(&name)
    }

    /// True if messages wait in this process, or are on their way to a wait queue, or are with the broker for a moment.
    pub(crate) fn holds_some(&self) -> bool {
        self.entries.values().any(|entry| entry.place == Place::Waiting)
    }

    /// How many deliveries the broker counts as unacknowledged.
    pub(crate) fn on_wire(&self) -> usize {
        self.entries.len() - self.away.len()
    }

    /// When the oldest delivery came.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| entry.wire.is_some()).map(|entry| entry.since).min()
    }

    /// Takes the tags of those that came before `then` off: the broker is to get them back. With each tag comes how often
    /// the message has been delivered, by the broker's count where it has one.
    pub(crate) fn give_back(&mut self, then: Instant) -> Vec<(u64, u32)> {
        let mut tags = Vec::new();
        for (name, entry) in &mut self.entries {
            if entry.since <= then
                && let Some(wire) = entry.wire.take()
            {
                entry.returns += 1;
                entry.since = Instant::now();
                tags.push((wire, delivery_count(&entry.message).saturating_add(entry.returns)));
                self.away.push(*name);
            }
        }
        tags.sort_unstable();
        tags
    }

    /// Recognises a redelivery. Copies that are alike in everything are the same message for this purpose: it does not
    /// matter which of them is settled first.
    pub(crate) fn returned(
        &mut self,
        delivery: &lapin::message::Delivery,
        since: Instant,
    ) -> Option<Returned> {
        if self.away.is_empty() || !delivery.redelivered {
            return None;
        }
        let is_it =
            |name: &Name| self.entries.get(name).is_some_and(|entry| is_same(&entry.message, delivery));
        let place = self.away.iter().position(is_it)?;
        let name = self.away.remove(place);
        let entry = self.entries.get_mut(&name)?;
        if let Place::Settled(settlement, _) = entry.place {
            self.entries.remove(&name);
            return Some(Returned::Settled(settlement));
        }
        entry.wire = Some(delivery.delivery_tag);
        // It was sent after it was given back.
        entry.since = entry.since.max(since);
        Some(Returned::Held)
    }

    /// The channel ended, and the broker has all messages again. They are recognised when they come back, or not (`forget`).
    pub(crate) fn channel_ended(&mut self, forget: bool) {
        if forget {
            self.entries.clear();
            self.away.clear();
            return;
        }
        self.give_back(Instant::now());
    }

    /// Drops settlements whose messages have gone elsewhere.
    pub(crate) fn tidy(&mut self) {
        let is_over =
            |entry: &Entry| matches!(entry.place, Place::Settled(_, at) if at.elapsed() > FORGET_AFTER);
        if self.away.iter().any(|name| self.entries.get(name).is_none_or(is_over)) {
            self.entries.retain(|_, entry| !is_over(entry));
            self.away.retain(|name| self.entries.contains_key(name));
        }
    }
}

/// The number of deliveries before this one, where the broker counts them (quorum queues).
fn delivery_count(message: &Message) -> u32 {
    let count = message.header("x-delivery-count").and_then(|count| std::str::from_utf8(count).ok());
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn is_same(message: &Message, delivery: &lapin::message::Delivery) -> bool {
    let Some(form) = message.native().and_then(Native::get::<RabbitForm>) else { return false };
    form.properties.message_id() == delivery.properties.message_id()
        && message.payload()[..] == delivery.data[..]
        && form.exchange == delivery.exchange
        && form.routing_key == delivery.routing_key
        && form.properties.timestamp() == delivery.properties.timestamp()
        && form.properties.correlation_id() == delivery.properties.correlation_id()
        && own_headers(&form.properties).eq(own_headers(&delivery.properties))
}

/// Without the broker's own counts, which grow.
fn own_headers(properties: &BasicProperties) -> impl Iterator<Item = (&ShortString, &AMQPValue)> {
    let all = properties.headers().iter().flat_map(|table| table.inner());
    all.filter(|(name, _)| !is_of_the_broker(name.as_str()) && name.as_str() != "x-acquired-count")
}

/// Above the tag on the wire: 2^48 messages of one channel are years of them.
const ROUND_SHIFT: u32 = 48;

/// The round and the name that a tag stands for.
pub(crate) fn split(tag: Tag) -> (u16, Name) {
    let round = u16::try_from(tag.number >> ROUND_SHIFT).unwrap_or(u16::MAX);
    (round, (tag.epoch, tag.number & ((1 << ROUND_SHIFT) - 1)))
}

/// The tag for a round of a delivery.
pub(crate) fn tag((epoch, number): Name, round: u16) -> Tag {
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

    fn held(ids: &[&str]) -> Held {
        let mut held = Held::default();
        for (number, id) in (1..).zip(ids) {
            let message =
                message::from(delivery(number, id, false, None), "orders".into(), None, &Default::default());
            held.insert((1, number), message, Instant::now());
        }
        held
    }

    #[test]
    fn a_message_that_was_given_back_is_recognised_once_and_keeps_its_name() {
        let mut held = held(&["a", "b"]);
        assert_eq!(held.give_back(Instant::now()), [(1, 1), (2, 1)]);
        assert_eq!((held.on_wire(), held.oldest()), (0, None));
        assert!(held.returned(&delivery(3, "c", true, Some(1)), Instant::now()).is_none(), "another message");
        assert!(
            held.returned(&delivery(3, "b", false, None), Instant::now()).is_none(),
            "a copy that is new"
        );
        assert!(matches!(
            held.returned(&delivery(4, "b", true, Some(1)), Instant::now()),
            Some(Returned::Held)
        ));
        assert!(held.returned(&delivery(5, "b", true, Some(1)), Instant::now()).is_none(), "it came once");
        assert_eq!(held.settle((1, 2), Settlement::Ack), Some(4));
        assert!(!held.contains((1, 2)) && held.contains((1, 1)));
    }

    #[test]
    fn what_is_settled_while_the_broker_has_it_is_settled_when_it_returns() {
        let mut held = held(&["a", "b", "c"]);
        held.give_back(Instant::now());
        assert_eq!(held.settle((1, 1), Settlement::Ack), None);
        assert_eq!(held.settle((1, 2), Settlement::Abandon), None);
        let back = held.returned(&delivery(4, "a", true, None), Instant::now());
        assert!(matches!(back, Some(Returned::Settled(Settlement::Ack))));
        assert!(held.returned(&delivery(5, "b", true, None), Instant::now()).is_none(), "it was given up");
        assert!(!held.contains((1, 1)) && !held.contains((1, 2)) && held.contains((1, 3)));
    }

    #[test]
    fn only_the_tag_of_the_last_round_settles() {
        let mut held = held(&["a"]);
        held.get_mut((1, 1)).unwrap().round = 2;
        assert!(held.current(tag((1, 1), 1)).is_none());
        assert!(held.current(tag((1, 1), 2)).is_some());
        assert_eq!(split(tag((7, 9), 3)), (3, (7, 9)));
    }

    #[test]
    fn an_ended_channel_keeps_what_it_held_or_forgets_it() {
        for forget in [false, true] {
            let mut held = held(&["a"]);
            held.channel_ended(forget);
            assert_eq!(held.returned(&delivery(1, "a", true, None), Instant::now()).is_some(), !forget);
        }
    }
}
