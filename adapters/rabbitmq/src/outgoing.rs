//! Turns an [`Outgoing`] into what AMQP can carry: [`Letter`].

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use onceward::dead_letter::HEADER_PREFIX;
use onceward::{Error, Outgoing};

use crate::error;
use crate::message;

/// What is left of a frame for headers, once the other properties have had their part of it.
const RESERVED_BYTES: usize = 2048;
const ID: &str = "onceward-id";
const ORDER_KEY: &str = "onceward-order-key";
const LEFT_OUT: &str = "onceward-headers-left-out";
/// Headers that a broker acts on or keeps its own books in: a copy must not carry them in that role.
const OF_THE_BROKER: [&str; 6] =
    ["cc", "bcc", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];

/// A message with its address.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
}

impl Letter {
    /// Headers and properties fit into one frame of `frame_max` bytes, whatever the message brings along: if need be
    /// the largest headers are left out, but never those that Onceward writes.
    pub(crate) fn new(outgoing: &Outgoing, frame_max: usize) -> Result<Self, Error> {
        let (exchange, routing_key) = address(&outgoing.destination)?;
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_timestamp(now());
        let mut headers: Vec<(String, Bytes)> = Vec::with_capacity(outgoing.headers.len() + 2);
        for (name, value) in &outgoing.headers {
            properties = match property(name, value) {
                Some(set) => set(properties),
                None => {
                    headers.push((safe_name(name), value.clone()));
                    properties
                }
            };
        }
        if !outgoing.id.is_empty() {
            match ShortString::try_new(outgoing.id.as_str()) {
                Ok(id) => properties = properties.with_message_id(id),
                Err(_) => headers.push((ID.to_owned(), outgoing.id.clone().into())),
            }
        }
        if let Some(order_key) = &outgoing.order_key {
            headers.push((ORDER_KEY.to_owned(), order_key.clone()));
        }
        fit(&mut headers, frame_max.saturating_sub(RESERVED_BYTES));
        if !headers.is_empty() {
            properties = properties.with_headers(table(headers));
        }
        Ok(Self { exchange, routing_key, properties, payload: outgoing.payload.clone() })
    }
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

/// The property that a header of the consumer's stands for.
fn property(name: &str, value: &Bytes) -> Option<Box<dyn FnOnce(BasicProperties) -> BasicProperties>> {
    let text = std::str::from_utf8(value).ok()?;
    let short = ShortString::try_new(text).ok()?;
    Some(match name {
        message::CONTENT_TYPE => Box::new(move |properties| properties.with_content_type(short)),
        message::CONTENT_ENCODING => Box::new(move |properties| properties.with_content_encoding(short)),
        message::CORRELATION_ID => Box::new(move |properties| properties.with_correlation_id(short)),
        message::REPLY_TO => Box::new(move |properties| properties.with_reply_to(short)),
        message::TYPE => Box::new(move |properties| properties.with_type(short)),
        message::APP_ID => Box::new(move |properties| properties.with_app_id(short)),
        message::PRIORITY => {
            let priority = text.parse().ok()?;
            Box::new(move |properties| properties.with_priority(priority))
        }
        _ => return None,
    })
}

/// True if a broker acts on headers of this name, or keeps its own books in them.
pub(crate) fn is_of_the_broker(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    OF_THE_BROKER.iter().any(|own| match own.strip_suffix('-') {
        Some(_) => lower.starts_with(own),
        None => lower == *own,
    })
}

/// A name that AMQP can carry and the broker does not act on.
fn safe_name(name: &str) -> String {
    let mut name =
        if is_of_the_broker(name) { format!("{}{name}", message::PREFIX) } else { name.to_owned() };
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

/// Leaves out the largest headers of the producer's until all fit into `limit` bytes.
fn fit(headers: &mut Vec<(String, Bytes)>, limit: usize) {
    let size = |(name, value): &(String, Bytes)| name.len() + value.len() + 6;
    let mut total: usize = headers.iter().map(size).sum();
    if total <= limit {
        return;
    }
    let before = headers.len();
    let mut by_size: Vec<usize> = (0..headers.len()).collect();
    by_size.sort_by_key(|index| std::cmp::Reverse(size(&headers[*index])));
    let mut leave_out = vec![false; headers.len()];
    for index in by_size {
        if total > limit && !headers[index].0.starts_with(HEADER_PREFIX) {
            leave_out[index] = true;
            total -= size(&headers[index]);
        }
    }
    let mut left_out = leave_out.into_iter();
    headers.retain(|_| !left_out.next().unwrap_or(false));
    let count = before - headers.len();
    tracing::warn!(headers = count, "headers do not fit into a frame of the broker's and were left out");
    headers.push((LEFT_OUT.to_owned(), count.to_string().into()));
}

/// Names that repeat become an array, which is all that a table can do for them.
fn table(headers: Vec<(String, Bytes)>) -> FieldTable {
    let mut table = std::collections::BTreeMap::<ShortString, AMQPValue>::new();
    for (name, value) in headers {
        let value = AMQPValue::LongString(value.to_vec().into());
        let Ok(name) = ShortString::try_new(name) else { continue };
        match table.entry(name) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(value)),
            std::collections::btree_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                AMQPValue::FieldArray(values) => values.push(value),
                first => {
                    let first_value = std::mem::replace(first, AMQPValue::Void);
                    *first = AMQPValue::FieldArray(FieldArray::from(vec![first_value, value]));
                }
            },
        }
    }
    table.into()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
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
        let letter = Letter::new(&message, 131_072).unwrap();
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
        let names: Vec<_> =
            headers(&Letter::new(&message, 131_072).unwrap()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["amqp-CC", "amqp-x-death", "amqp-x-first-death-queue", "x-own"]);
    }

    #[test]
    fn names_that_repeat_keep_all_their_values() {
        let letter = Letter::new(&outgoing(&[("a", b"1"), ("a", b"2"), ("a", b"3")]), 131_072).unwrap();
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
        let letter = Letter::new(&message, 6000).unwrap();
        let kept: Vec<_> = headers(&letter).into_iter().map(|(name, _)| name).collect();
        assert_eq!(kept, [&name[..255], LEFT_OUT, ID, "onceward-key", "small"].map(str::to_owned));
        assert_eq!(letter.properties.message_id(), &None);
    }
}
