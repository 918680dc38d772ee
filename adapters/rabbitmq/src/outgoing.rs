//! Turns an [`Outgoing`] into what AMQP can carry: [`Letter`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, ShortString};
use onceward::dead_letter::{HEADER_ERROR, HEADER_ID, HEADER_MESSAGE_ID, HEADER_PREFIX, HEADER_REASON};
use onceward::{Error, Native, Outgoing, OwnHeaders};

use crate::native::{
    EXPIRATION, FACTS, RabbitForm, USER_ID, copied, field_bytes, frame_bytes, is_of_the_broker,
    passes_for_fact, safe_name, seal_facts, text,
};
use crate::{error, message};

const ORDER_KEY: &str = "onceward-order-key";
const LEFT_OUT: &str = "onceward-headers-left-out";
/// What is left of the last error where the headers do not fit otherwise.
const SHORT_ERROR_BYTES: usize = 64;

/// A message with its address.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
}

impl Letter {
    /// Headers and properties fit into one frame of `frame_max` bytes, whatever the message brings along: if need be our
    /// own are shortened first, then the largest of the producer's are left out.
    pub(crate) fn new(outgoing: &Outgoing, frame_max: usize, own: &OwnHeaders) -> Result<Self, Error> {
        let (exchange, routing_key) = address(&outgoing.destination)?;
        let native = outgoing.native.as_ref().and_then(Native::get::<RabbitForm>);
        let mut headers = Headers::default();
        let is_letter = outgoing.headers.iter().any(|(name, _)| name == HEADER_REASON);
        let mut properties = match native {
            Some(form) => from_native(form, is_letter, &mut headers),
            None => {
                let made = outgoing.timestamp.unwrap_or_else(SystemTime::now);
                BasicProperties::default().with_delivery_mode(2).with_timestamp(seconds(made))
            }
        };
        for (name, value) in &outgoing.headers {
            let is_ours = name.starts_with(HEADER_PREFIX);
            match property(name, value) {
                Some(Property { is_set, set }) if native.is_none_or(|form| !is_set(&form.properties)) => {
                    properties = set(properties);
                }
                // In its own form the property has been copied already.
                Some(_) => {}
                None if FACTS.contains(&&**name)
                    && let Some(form) = native =>
                {
                    // What may expire has it as a property.
                    let is_a_property = name == EXPIRATION && form.properties.expiration().is_some();
                    if is_letter || !is_a_property {
                        headers.add_missing(name, text(value));
                    }
                }
                None if is_ours || native.is_none_or(|form| !form.has_header(name)) => {
                    headers.add(safe_name(name), text(value));
                }
                None => {}
            }
        }
        if !outgoing.id.is_empty() {
            match ShortString::try_new(outgoing.id.as_str()) {
                Ok(id) => properties = properties.with_message_id(id),
                Err(_) => headers.add_missing(HEADER_MESSAGE_ID, text(&outgoing.id)),
            }
        }
        if !outgoing.own_id.is_empty() {
            headers.add_missing(HEADER_ID, text(&outgoing.own_id));
        }
        if let Some(order_key) = &outgoing.order_key {
            headers.add_missing(ORDER_KEY, text(order_key));
        }
        if is_letter {
            seal_facts(&mut headers.0, own, &outgoing.payload);
        }
        headers.fit(frame_max.saturating_sub(frame_bytes(&properties)));
        if !headers.0.is_empty() {
            properties = properties.with_headers(headers.0.into());
        }
        Ok(Self { exchange, routing_key, properties, payload: outgoing.payload.clone() })
    }
}

/// The properties of the message as it came; its headers go into `headers`. A letter must not expire.
fn from_native(form: &RabbitForm, is_letter: bool, headers: &mut Headers) -> BasicProperties {
    // What our own wait queues left is of no use to anybody.
    let only_waited = form.has_only_waited();
    for (name, value) in form.headers() {
        let is_noise = only_waited && is_of_the_broker(name.as_str());
        let is_ours = name.as_str().starts_with(HEADER_PREFIX);
        if !is_ours && !is_noise && !passes_for_fact(name.as_str()) {
            headers.add(safe_name(name.as_str()), value.clone());
        }
    }
    if let Some(user) = form.properties.user_id() {
        headers.add_missing(USER_ID, text(user.as_str()));
    }
    if let Some(expiration) = form.properties.expiration().as_ref().filter(|_| is_letter) {
        headers.add_missing(EXPIRATION, text(expiration.as_str()));
    }
    copied(&form.properties, !is_letter)
}

/// `queue`, or `exchange/routing-key`; `/queue/with/slashes`.
pub(crate) fn address(destination: &str) -> Result<(ShortString, ShortString), Error> {
    let (exchange, routing_key) = destination.split_once('/').unwrap_or(("", destination));
    let short = |text: &str| {
        let what = "a part of the destination is longer than 255 bytes, the most AMQP can carry";
        ShortString::try_new(text).map_err(|_| error::config("publish to RabbitMQ", what))
    };
    if exchange.is_empty() && routing_key.is_empty() {
        return Err(error::config(
            "publish to RabbitMQ",
            "the destination is empty; name a queue, or exchange/routing-key",
        ));
    }
    Ok((short(exchange)?, short(routing_key)?))
}

/// A property that a header of the consumer's stands for.
struct Property {
    is_set: fn(&BasicProperties) -> bool,
    set: Box<dyn FnOnce(BasicProperties) -> BasicProperties>,
}

fn property(name: &str, value: &Bytes) -> Option<Property> {
    if !name.starts_with(message::PREFIX) {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?;
    let short = ShortString::try_new(text).ok()?;
    macro_rules! property {
        ($get:ident, $set:ident, $value:expr) => {{
            let value = $value;
            Property {
                is_set: |properties| properties.$get().is_some(),
                set: Box::new(move |properties| properties.$set(value)),
            }
        }};
    }
    Some(match name {
        message::CONTENT_TYPE => property!(content_type, with_content_type, short),
        message::CONTENT_ENCODING => property!(content_encoding, with_content_encoding, short),
        message::CORRELATION_ID => property!(correlation_id, with_correlation_id, short),
        message::REPLY_TO => property!(reply_to, with_reply_to, short),
        message::TYPE => property!(kind, with_type, short),
        message::APP_ID => property!(app_id, with_app_id, short),
        message::PRIORITY => property!(priority, with_priority, text.parse().ok()?),
        _ => return None,
    })
}

/// The headers of a letter.
#[derive(Debug, Default)]
struct Headers(BTreeMap<ShortString, AMQPValue>);

impl Headers {
    /// Names that repeat become an array, which is all that a table can do for them.
    fn add(&mut self, name: ShortString, value: AMQPValue) {
        match self.0.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(value)),
            Entry::Occupied(mut entry) => match entry.get_mut() {
                AMQPValue::FieldArray(values) => values.push(value),
                first => {
                    let first_value = std::mem::replace(first, AMQPValue::Void);
                    *first = AMQPValue::FieldArray(FieldArray::from(vec![first_value, value]));
                }
            },
        }
    }

    fn add_missing(&mut self, name: &str, value: AMQPValue) {
        self.0.entry(name.into()).or_insert(value);
    }

    /// Makes all fit into `limit` bytes: shortens our last error, then leaves out the largest headers of the producer's.
    fn fit(&mut self, limit: usize) {
        let size = |(name, value): (&ShortString, &AMQPValue)| field_bytes(name.as_str(), value);
        let mut total: usize = self.0.iter().map(size).sum();
        if total > limit
            && let Some(AMQPValue::LongString(error)) = self.0.get_mut(HEADER_ERROR)
            && error.as_bytes().len() > SHORT_ERROR_BYTES
        {
            let start = String::from_utf8_lossy(&error.as_bytes()[..SHORT_ERROR_BYTES]);
            let shorter = AMQPValue::LongString(start.trim_end_matches('\u{fffd}').into());
            self.0.insert(HEADER_ERROR.into(), shorter);
            total = self.0.iter().map(size).sum();
        }
        if total <= limit {
            return;
        }
        let limit = limit.saturating_sub(field_bytes(LEFT_OUT, &text("10000")));
        let mut by_size: Vec<_> = self.0.iter().map(|field| (size(field), field.0.clone())).collect();
        by_size.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut count = 0_usize;
        for (bytes, name) in by_size {
            if total > limit && !name.as_str().starts_with(HEADER_PREFIX) {
                self.0.remove(&name);
                total -= bytes;
                count += 1;
            }
        }
        tracing::warn!(
            headers = count,
            "headers of a message do not fit into a frame of the broker and were left out; raise the broker's frame_max"
        );
        self.0.insert(LEFT_OUT.into(), text(count.to_string()));
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    fn outgoing(headers: &[(&str, &[u8])]) -> Outgoing {
        let headers =
            headers.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value))).collect();
        Outgoing { destination: "dead".into(), id: "7".into(), headers, ..Outgoing::default() }
    }

    fn headers(letter: &Letter) -> Vec<(String, AMQPValue)> {
        let table = letter.properties.headers().clone().unwrap_or_default();
        table.inner().iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    #[test]
    fn destinations_name_a_queue_or_an_exchange() {
        for (destination, exchange, routing_key) in [
            ("orders", "", "orders"),
            ("shop/orders.new", "shop", "orders.new"),
            ("fanout/", "fanout", ""),
            ("/a/b", "", "a/b"),
            ("shop/a/b", "shop", "a/b"),
        ] {
            let (own_exchange, own_key) = address(destination).unwrap();
            assert_eq!((own_exchange.as_str(), own_key.as_str()), (exchange, routing_key));
        }
        for destination in ["", "/", &"q".repeat(256)] {
            assert!(address(destination).is_err());
        }
    }

    #[test]
    fn what_the_consumer_made_of_properties_becomes_properties_again() {
        let message = outgoing(&[
            ("amqp-content-type", b"text/plain"),
            ("amqp-priority", b"3"),
            ("amqp-type", b"\xff"),
        ]);
        let letter = Letter::new(&message, 131_072, &OwnHeaders::default()).unwrap();
        assert_eq!(letter.properties.content_type().as_ref().map(ShortString::as_str), Some("text/plain"));
        assert_eq!((letter.properties.priority(), letter.properties.delivery_mode()), (&Some(3), &Some(2)));
        assert_eq!(letter.properties.message_id().as_ref().map(ShortString::as_str), Some("7"));
        assert_eq!(headers(&letter), [("amqp-type".into(), AMQPValue::LongString(b"\xff"[..].into()))]);
    }

    #[test]
    fn headers_that_a_broker_acts_on_lose_their_power() {
        let message = outgoing(&[
            ("CC", b"[\"thief\"]"),
            ("x-death", b"[]"),
            ("x-first-death-queue", b"q"),
            ("x-own", b""),
        ]);
        let names: Vec<_> = headers(&Letter::new(&message, 131_072, &OwnHeaders::default()).unwrap())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["amqp-CC", "amqp-x-death", "amqp-x-first-death-queue", "x-own"]);
    }

    #[test]
    fn names_that_repeat_keep_all_their_values() {
        let letter =
            Letter::new(&outgoing(&[("a", b"1"), ("a", b"2"), ("a", b"3")]), 131_072, &OwnHeaders::default())
                .unwrap();
        let [(_, AMQPValue::FieldArray(values))] = &headers(&letter)[..] else { panic!("{letter:?}") };
        let texts: Vec<_> =
            values.as_slice().iter().filter_map(AMQPValue::as_long_string).map(ToString::to_string).collect();
        assert_eq!(texts, ["1", "2", "3"]);
    }

    #[test]
    fn a_letter_fits_into_a_frame_whatever_it_brings_along() {
        let large = vec![b'x'; 3000];
        let name = "n".repeat(300);
        let mut message =
            outgoing(&[("large", &large), ("small", b"1"), (&name, b"2"), ("onceward-key", &large)]);
        message.id = "i".repeat(300);
        message.own_id = "own".into();
        let letter = Letter::new(&message, 4200, &OwnHeaders::default()).unwrap();
        let kept: Vec<_> = headers(&letter).into_iter().map(|(name, _)| name).collect();
        let expected = [&name[..255], LEFT_OUT, HEADER_ID, "onceward-key", HEADER_MESSAGE_ID, "small"];
        assert_eq!(kept, expected.map(str::to_owned));
        assert_eq!(letter.properties.message_id(), &None);
    }

    /// Every type a table can hold.
    fn of_every_type() -> FieldTable {
        let mut table = FieldTable::default();
        let mut inner = FieldTable::default();
        inner.insert("a".into(), AMQPValue::LongInt(1));
        for (name, value) in [
            ("bool", AMQPValue::Boolean(true)),
            ("int", AMQPValue::LongInt(7)),
            ("long", AMQPValue::LongLongInt(i64::MIN)),
            ("double", AMQPValue::Double(1.5)),
            ("decimal", AMQPValue::DecimalValue(lapin::types::DecimalValue { scale: 1, value: 15 })),
            ("time", AMQPValue::Timestamp(1_767_225_600)),
            ("array", AMQPValue::FieldArray(vec![AMQPValue::LongInt(1), AMQPValue::Void].into())),
            ("table", AMQPValue::FieldTable(inner)),
            ("void", AMQPValue::Void),
            ("bytes", AMQPValue::ByteArray(b"\xff"[..].into())),
            ("text", text("t")),
        ] {
            table.insert(name.into(), value);
        }
        table
    }

    fn native(properties: BasicProperties) -> (Outgoing, FieldTable) {
        let table = of_every_type();
        let mut with_ours = table.clone();
        with_ours.insert("onceward-reason".into(), text("stale"));
        let form = RabbitForm {
            exchange: ShortString::default(),
            routing_key: "orders".into(),
            properties: properties.with_headers(with_ours),
        };
        let message = outgoing(&[("int", b"7"), ("amqp-priority", b"3"), ("extra", b"1")]);
        (Outgoing { native: Some(Native::new(form)), id: String::new(), ..message }, table)
    }

    #[test]
    fn a_message_of_this_broker_keeps_types_and_properties() {
        let properties = BasicProperties::default()
            .with_delivery_mode(1)
            .with_priority(3)
            .with_timestamp(1_700_000_000)
            .with_message_id("the producer's".into())
            .with_user_id("shop".into())
            .with_expiration("60000".into());
        let (message, mut table) = native(properties);
        table.insert("extra".into(), text("1"));
        table.insert(USER_ID.into(), text("shop"));
        let letter = Letter::new(&message, 131_072, &OwnHeaders::default()).unwrap();
        let sent = &letter.properties;
        assert_eq!(sent.headers().as_ref(), Some(&table));
        assert_eq!((sent.priority(), sent.delivery_mode()), (&Some(3), &Some(2)));
        assert_eq!((sent.timestamp(), sent.user_id()), (&Some(1_700_000_000), &None));
        assert_eq!(sent.message_id().as_ref().map(ShortString::as_str), Some("the producer's"));
        assert_eq!(sent.expiration().as_ref().map(ShortString::as_str), Some("60000"));
    }

    #[test]
    fn a_letter_does_not_expire_and_our_id_stands_beside_the_producers() {
        let (mut message, mut table) = native(BasicProperties::default().with_expiration("60000".into()));
        message.headers.push((HEADER_REASON.into(), "permanent".into()));
        message.headers.push((EXPIRATION.into(), "60000".into()));
        message.own_id = "k-0".into();
        table.insert("extra".into(), text("1"));
        table.insert(EXPIRATION.into(), text("60000"));
        table.insert(HEADER_REASON.into(), text("permanent"));
        table.insert(HEADER_ID.into(), text("k-0"));
        let letter = Letter::new(&message, 131_072, &OwnHeaders::default()).unwrap();
        assert_eq!(letter.properties.headers().as_ref(), Some(&table));
        assert_eq!((letter.properties.expiration(), letter.properties.message_id()), (&None, &None));
        // It had none, and gets none.
        assert_eq!(letter.properties.timestamp(), &None);
    }

    #[test]
    fn our_own_headers_are_shortened_before_the_producers_are_left_out() {
        let error = vec![b'e'; 1024];
        let message = outgoing(&[("large", &[b'x'; 3000]), (HEADER_ERROR, &error)]);
        let letter = Letter::new(&message, 3500, &OwnHeaders::default()).unwrap();
        let kept = headers(&letter);
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert_eq!(kept[1], (HEADER_ERROR.into(), text([b'e'; SHORT_ERROR_BYTES])));
    }
}
