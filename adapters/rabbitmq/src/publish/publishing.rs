//! Converts an [`Outgoing`] message to AMQP: [`Publishing`].

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;
use onceward::adapter::Native;
use onceward::dead_letter::{HEADER_ID, HEADER_MESSAGE_ID, HEADER_PREFIX, HEADER_REASON};
use onceward::{Error, Outgoing, OwnHeaders};

use super::header_table::HeaderTable;
use crate::error;
use crate::format::native::{
    EXPIRATION, FACTS, RabbitmqForm, USER_ID, copy_properties, frame_bytes, imitates_fact, is_broker_header,
    long_string, safe_header_name, seal_facts,
};
use crate::format::property_headers;

const ORDER_KEY: &str = "onceward-order-key";

/// A batch: each message, or the error of building it.
pub(crate) type Publishings = Vec<Result<Publishing, Error>>;

/// A message to publish, with its address.
#[derive(Debug)]
pub(crate) struct Publishing {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
}

impl Publishing {
    /// Converts a message. Headers and properties fit into one frame of `frame_max` bytes, whatever the message
    /// contains: our own headers are truncated first, then the largest headers of the producer are dropped.
    ///
    /// # Errors
    /// The destination is invalid.
    pub(crate) fn new(outgoing: &Outgoing, frame_max: usize, own: &OwnHeaders) -> Result<Self, Error> {
        let (exchange, routing_key) = parse_destination(&outgoing.destination)?;
        let native = outgoing.native.as_ref().and_then(Native::get::<RabbitmqForm>);
        let mut headers = HeaderTable::default();
        let is_dead_letter = outgoing.headers.iter().any(|(name, _)| name == HEADER_REASON);
        let mut properties = match native {
            Some(form) => copy_native(form, is_dead_letter, &mut headers),
            None => {
                let made = outgoing.timestamp.unwrap_or_else(SystemTime::now);
                BasicProperties::default().with_delivery_mode(2).with_timestamp(unix_seconds(made))
            }
        };
        for (name, value) in &outgoing.headers {
            let is_ours = name.starts_with(HEADER_PREFIX);
            match property_for_header(name, value) {
                Some(PropertySetter { is_set, set })
                    if native.is_none_or(|form| !is_set(&form.properties)) =>
                {
                    properties = set(properties);
                }
                // The native form has copied the property already.
                Some(_) => {}
                None if FACTS.contains(&&**name)
                    && let Some(form) = native =>
                {
                    // A message that may expire carries it as a property.
                    let is_a_property = name == EXPIRATION && form.properties.expiration().is_some();
                    if is_dead_letter || !is_a_property {
                        headers.add_missing(name, long_string(value));
                    }
                }
                None if outgoing.replaces_native(name) => {
                    headers.replace(safe_header_name(name), long_string(value));
                }
                None if is_ours || native.is_none_or(|form| !form.has_header(name)) => {
                    headers.add(safe_header_name(name), long_string(value));
                }
                None => {}
            }
        }
        if !outgoing.id.is_empty() {
            match ShortString::try_new(outgoing.id.as_str()) {
                Ok(id) => properties = properties.with_message_id(id),
                Err(_) => headers.add_missing(HEADER_MESSAGE_ID, long_string(&outgoing.id)),
            }
        }
        if !outgoing.own_id.is_empty() {
            headers.add_missing(HEADER_ID, long_string(&outgoing.own_id));
        }
        if let Some(order_key) = &outgoing.order_key {
            headers.add_missing(ORDER_KEY, long_string(order_key));
        }
        if is_dead_letter {
            seal_facts(&mut headers.0, own, &outgoing.payload);
        }
        headers.shrink_to(frame_max.saturating_sub(frame_bytes(&properties)));
        if !headers.0.is_empty() {
            properties = properties.with_headers(headers.0.into());
        }
        Ok(Self { exchange, routing_key, properties, payload: outgoing.payload.clone() })
    }
}

/// Copies the native properties, and the native headers into `headers`. A dead letter must not expire.
fn copy_native(form: &RabbitmqForm, is_dead_letter: bool, headers: &mut HeaderTable) -> BasicProperties {
    // Traces of our own delay queues mean nothing to others.
    let only_delayed = form.was_only_delayed();
    for (name, value) in form.headers() {
        let is_noise = only_delayed && is_broker_header(name.as_str());
        let is_ours = name.as_str().starts_with(HEADER_PREFIX);
        if !is_ours && !is_noise && !imitates_fact(name.as_str()) {
            headers.add(safe_header_name(name.as_str()), value.clone());
        }
    }
    if let Some(user) = form.properties.user_id() {
        headers.add_missing(USER_ID, long_string(user.as_str()));
    }
    if let Some(expiration) = form.properties.expiration().as_ref().filter(|_| is_dead_letter) {
        headers.add_missing(EXPIRATION, long_string(expiration.as_str()));
    }
    copy_properties(&form.properties, !is_dead_letter)
}

/// Parses `queue`, `exchange/routing-key` or `/queue/with/slashes`.
pub(crate) fn parse_destination(destination: &str) -> Result<(ShortString, ShortString), Error> {
    let (exchange, routing_key) = destination.split_once('/').unwrap_or(("", destination));
    let short = |text: &str| {
        let what = "a part of the destination exceeds 255 bytes, the limit of AMQP";
        ShortString::try_new(text).map_err(|_| error::config("publish to RabbitMQ", what))
    };
    if exchange.is_empty() && routing_key.is_empty() {
        return Err(error::config(
            "publish to RabbitMQ",
            "the destination is empty; set a queue, or exchange/routing-key",
        ));
    }
    Ok((short(exchange)?, short(routing_key)?))
}

/// An AMQP property that the consumer has exposed as a header.
struct PropertySetter {
    is_set: fn(&BasicProperties) -> bool,
    set: Box<dyn FnOnce(BasicProperties) -> BasicProperties>,
}

fn property_for_header(name: &str, value: &Bytes) -> Option<PropertySetter> {
    if !name.starts_with(property_headers::PREFIX) {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?;
    let short = ShortString::try_new(text).ok()?;
    macro_rules! property {
        ($get:ident, $set:ident, $value:expr) => {{
            let value = $value;
            PropertySetter {
                is_set: |properties| properties.$get().is_some(),
                set: Box::new(move |properties| properties.$set(value)),
            }
        }};
    }
    Some(match name {
        property_headers::CONTENT_TYPE => property!(content_type, with_content_type, short),
        property_headers::CONTENT_ENCODING => property!(content_encoding, with_content_encoding, short),
        property_headers::CORRELATION_ID => property!(correlation_id, with_correlation_id, short),
        property_headers::REPLY_TO => property!(reply_to, with_reply_to, short),
        property_headers::TYPE => property!(kind, with_type, short),
        property_headers::APP_ID => property!(app_id, with_app_id, short),
        property_headers::PRIORITY => property!(priority, with_priority, text.parse().ok()?),
        _ => return None,
    })
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldTable};
    use onceward::dead_letter::HEADER_ERROR;

    use super::*;
    use crate::publish::header_table::{DROPPED_HEADERS, SHORT_ERROR_BYTES};

    fn outgoing(headers: &[(&str, &[u8])]) -> Outgoing {
        let headers =
            headers.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value))).collect();
        Outgoing { destination: "dead".into(), id: "7".into(), headers, ..Outgoing::default() }
    }

    fn headers(publishing: &Publishing) -> Vec<(String, AMQPValue)> {
        let table = publishing.properties.headers().clone().unwrap_or_default();
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
            let (own_exchange, own_key) = parse_destination(destination).unwrap();
            assert_eq!((own_exchange.as_str(), own_key.as_str()), (exchange, routing_key));
        }
        for destination in ["", "/", &"q".repeat(256)] {
            assert!(parse_destination(destination).is_err());
        }
    }

    #[test]
    fn headers_made_of_properties_become_properties_again() {
        let message = outgoing(&[
            ("amqp-content-type", b"text/plain"),
            ("amqp-priority", b"3"),
            ("amqp-type", b"\xff"),
        ]);
        let publishing = Publishing::new(&message, 131_072, &OwnHeaders::default()).unwrap();
        assert_eq!(
            publishing.properties.content_type().as_ref().map(ShortString::as_str),
            Some("text/plain")
        );
        assert_eq!(
            (publishing.properties.priority(), publishing.properties.delivery_mode()),
            (&Some(3), &Some(2))
        );
        assert_eq!(publishing.properties.message_id().as_ref().map(ShortString::as_str), Some("7"));
        assert_eq!(headers(&publishing), [("amqp-type".into(), AMQPValue::LongString(b"\xff"[..].into()))]);
    }

    #[test]
    fn headers_that_a_broker_acts_on_are_renamed() {
        let message = outgoing(&[
            ("CC", b"[\"thief\"]"),
            ("x-death", b"[]"),
            ("x-first-death-queue", b"q"),
            ("x-own", b""),
        ]);
        let names: Vec<_> = headers(&Publishing::new(&message, 131_072, &OwnHeaders::default()).unwrap())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["amqp-CC", "amqp-x-death", "amqp-x-first-death-queue", "x-own"]);
    }

    #[test]
    fn repeated_names_keep_all_values() {
        let publishing = Publishing::new(
            &outgoing(&[("a", b"1"), ("a", b"2"), ("a", b"3")]),
            131_072,
            &OwnHeaders::default(),
        )
        .unwrap();
        let [(_, AMQPValue::FieldArray(values))] = &headers(&publishing)[..] else {
            panic!("{publishing:?}")
        };
        let texts: Vec<_> =
            values.as_slice().iter().filter_map(AMQPValue::as_long_string).map(ToString::to_string).collect();
        assert_eq!(texts, ["1", "2", "3"]);
    }

    #[test]
    fn a_message_fits_into_a_frame_whatever_its_headers() {
        let large = vec![b'x'; 3000];
        let name = "n".repeat(300);
        let mut message =
            outgoing(&[("large", &large), ("small", b"1"), (&name, b"2"), ("onceward-key", &large)]);
        message.id = "i".repeat(300);
        message.own_id = "own".into();
        let publishing = Publishing::new(&message, 4200, &OwnHeaders::default()).unwrap();
        let kept: Vec<_> = headers(&publishing).into_iter().map(|(name, _)| name).collect();
        let expected = [&name[..255], DROPPED_HEADERS, HEADER_ID, "onceward-key", HEADER_MESSAGE_ID, "small"];
        assert_eq!(kept, expected.map(str::to_owned));
        assert_eq!(publishing.properties.message_id(), &None);
    }

    /// A table with every value type.
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
            ("text", long_string("t")),
        ] {
            table.insert(name.into(), value);
        }
        table
    }

    fn native(properties: BasicProperties) -> (Outgoing, FieldTable) {
        let table = of_every_type();
        let mut with_ours = table.clone();
        with_ours.insert("onceward-reason".into(), long_string("stale"));
        let form = RabbitmqForm {
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
        table.insert("extra".into(), long_string("1"));
        table.insert(USER_ID.into(), long_string("shop"));
        let publishing = Publishing::new(&message, 131_072, &OwnHeaders::default()).unwrap();
        let sent = &publishing.properties;
        assert_eq!(sent.headers().as_ref(), Some(&table));
        assert_eq!((sent.priority(), sent.delivery_mode()), (&Some(3), &Some(2)));
        assert_eq!((sent.timestamp(), sent.user_id()), (&Some(1_700_000_000), &None));
        assert_eq!(sent.message_id().as_ref().map(ShortString::as_str), Some("the producer's"));
        assert_eq!(sent.expiration().as_ref().map(ShortString::as_str), Some("60000"));
    }

    #[test]
    fn a_dead_letter_does_not_expire_and_keeps_the_producers_id() {
        let (mut message, mut table) = native(BasicProperties::default().with_expiration("60000".into()));
        message.headers.push((HEADER_REASON.into(), "permanent".into()));
        message.headers.push((EXPIRATION.into(), "60000".into()));
        message.own_id = "k-0".into();
        table.insert("extra".into(), long_string("1"));
        table.insert(EXPIRATION.into(), long_string("60000"));
        table.insert(HEADER_REASON.into(), long_string("permanent"));
        table.insert(HEADER_ID.into(), long_string("k-0"));
        let publishing = Publishing::new(&message, 131_072, &OwnHeaders::default()).unwrap();
        assert_eq!(publishing.properties.headers().as_ref(), Some(&table));
        assert_eq!((publishing.properties.expiration(), publishing.properties.message_id()), (&None, &None));
        // It had no timestamp, and gets none.
        assert_eq!(publishing.properties.timestamp(), &None);
    }

    #[test]
    fn our_own_headers_are_truncated_before_the_producers_are_dropped() {
        let error = vec![b'e'; 1024];
        let message = outgoing(&[("large", &[b'x'; 3000]), (HEADER_ERROR, &error)]);
        let publishing = Publishing::new(&message, 3500, &OwnHeaders::default()).unwrap();
        let kept = headers(&publishing);
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert_eq!(kept[1], (HEADER_ERROR.into(), long_string([b'e'; SHORT_ERROR_BYTES])));
    }

    #[test]
    fn a_trace_context_replaces_the_native_one_but_not_in_a_dead_letter() {
        let sent = |reason: Option<&'static str>| {
            let (mut message, mut table) = native(BasicProperties::default());
            table.insert("traceparent".into(), long_string("old"));
            let properties = BasicProperties::default().with_headers(table);
            let (exchange, routing_key) = (ShortString::default(), "orders".into());
            message.native = Some(Native::new(RabbitmqForm { exchange, routing_key, properties }));
            message.headers.push(("traceparent".into(), "new".into()));
            message.headers.extend(reason.map(|reason| (HEADER_REASON.to_owned(), reason.into())));
            let publishing = Publishing::new(&message, 131_072, &OwnHeaders::default()).unwrap();
            headers(&publishing).into_iter().find(|(name, _)| name == "traceparent").unwrap().1
        };
        assert_eq!(sent(None), long_string("new"));
        assert_eq!(sent(Some("permanent")), long_string("old"));
    }
}
