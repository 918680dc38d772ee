//! Converts AMQP deliveries to [`Message`]s: [`to_message`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use lapin::message::Delivery;
use lapin::types::{FieldTable, ShortString};
use onceward::adapter::{Defect, Native};
use onceward::{Message, OwnHeaders};

use crate::format::header_values;
use crate::format::native::{self, EXCHANGE, EXPIRATION, ROUTING_KEY, RabbitmqForm, USER_ID};
use crate::format::property_headers::{
    APP_ID, CONTENT_ENCODING, CONTENT_TYPE, CORRELATION_ID, PRIORITY, REPLY_TO, TYPE,
};

/// Converts a delivery from the queue `origin`; `sanitized` is the defect that the sanitiser found. The message keeps
/// its native form beside the converted headers.
pub(crate) fn to_message(
    delivery: Delivery,
    origin: Arc<str>,
    sanitized: Option<&'static str>,
    own: &OwnHeaders,
) -> Message {
    let payload = Bytes::from(delivery.data);
    let mut form = RabbitmqForm {
        exchange: delivery.exchange,
        routing_key: delivery.routing_key,
        properties: delivery.properties,
    };
    let properties = &form.properties;
    let mut message = Message::builder(payload.clone()).origin(origin).redelivered(delivery.redelivered);
    if let Some(id) = properties.message_id() {
        message = message.message_id(id.as_str());
    }
    if let Some(content_type) = properties.content_type() {
        message = message.content_type(content_type.as_str());
    }
    if let Some(seconds) = properties.timestamp()
        && let Some(at) = UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
    {
        message = message.timestamp(at);
    }
    // Before the producer's own headers, so that one of the same name does not hide them.
    let mut headers = Vec::new();
    let mut add = |name: &'static str, value: Option<&ShortString>| {
        if let Some(value) = value {
            headers.push((name, Bytes::copy_from_slice(value.as_str().as_bytes())));
        }
    };
    // A message published to the queue directly has no exchange, and the queue's name as routing key.
    let exchange = Some(&form.exchange).filter(|exchange| !exchange.as_str().is_empty());
    add(EXCHANGE, exchange);
    add(ROUTING_KEY, exchange.map(|_| &form.routing_key));
    add(CONTENT_TYPE, properties.content_type().as_ref());
    add(CONTENT_ENCODING, properties.content_encoding().as_ref());
    add(CORRELATION_ID, properties.correlation_id().as_ref());
    add(REPLY_TO, properties.reply_to().as_ref());
    add(TYPE, properties.kind().as_ref());
    add(APP_ID, properties.app_id().as_ref());
    add(USER_ID, properties.user_id().as_ref());
    add(EXPIRATION, properties.expiration().as_ref());
    if let Some(priority) = properties.priority() {
        headers.push((PRIORITY, Bytes::from(priority.to_string())));
    }
    // Facts from a sealed copy of ours, after the facts of this delivery.
    let brought = native::trusted_facts(&form, own, &payload);
    headers.extend(brought.into_iter().map(|(name, value)| (name, Bytes::copy_from_slice(value))));
    message = headers.into_iter().fold(message, |message, (name, value)| message.header(name, value));
    let mut defect = sanitized;
    let mut too_deep = Vec::new();
    for (name, value) in form.headers().filter(|(name, _)| !native::imitates_fact(name.as_str())) {
        match header_values::to_bytes(value) {
            Ok(value) => message = message.header(name.as_str(), value),
            Err(header_values::TooDeep) => too_deep.push(name.clone()),
        }
    }
    if !too_deep.is_empty() {
        defect = Some("its headers are nested more than 32 deep");
        let kept = form.headers().filter(|(name, _)| !too_deep.contains(name));
        let kept: FieldTable =
            kept.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>().into();
        form.properties = form.properties.with_headers(kept);
    }
    message = message.native(Native::new(form));
    match defect {
        Some(what) => message.defect(Defect::Malformed { what: what.to_owned() }).build(),
        None => message.build(),
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldArray};
    use onceward::OwnSecrets;

    use super::*;

    fn delivery(exchange: &str, properties: BasicProperties) -> Delivery {
        let mut delivery = Delivery::mock(1, exchange.into(), "orders".into(), true, b"pay".to_vec());
        delivery.properties = properties;
        delivery
    }

    fn plain(delivery: Delivery) -> Message {
        to_message(delivery, "orders".into(), None, &OwnHeaders::default())
    }

    fn text(message: &Message, name: &str) -> Option<String> {
        message.header(name).map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    #[test]
    fn properties_and_headers_become_a_message() {
        let mut table = FieldTable::default();
        table.insert("tenant".into(), AMQPValue::LongString("a".into()));
        table.insert("amqp-type".into(), AMQPValue::LongString("forged".into()));
        let properties = BasicProperties::default()
            .with_message_id("7".into())
            .with_timestamp(1_700_000_000)
            .with_type("order".into())
            .with_priority(3)
            .with_content_type("text/plain".into())
            .with_headers(table);
        let message = to_message(delivery("shop", properties), "orders".into(), None, &OwnHeaders::default());
        assert_eq!((message.id(), message.origin()), (Some(&b"7"[..]), Some("orders")));
        assert_eq!(&message.payload()[..], b"pay");
        assert!(message.is_redelivered() && message.defect().is_none());
        assert_eq!(message.timestamp(), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        assert_eq!(message.content_type(), Some("text/plain"));
        let form = message.native().and_then(Native::get::<RabbitmqForm>).unwrap();
        assert_eq!((form.exchange.as_str(), form.properties.timestamp()), ("shop", &Some(1_700_000_000)));
        for (name, value) in [
            ("tenant", "a"),
            ("amqp-type", "order"),
            ("amqp-priority", "3"),
            ("amqp-exchange", "shop"),
            ("amqp-routing-key", "orders"),
        ] {
            assert_eq!(text(&message, name).as_deref(), Some(value));
        }
        assert_eq!(plain(delivery("", BasicProperties::default())).headers().len(), 0);
    }

    #[test]
    fn producer_headers_cannot_imitate_facts_of_the_broker() {
        let mut table = FieldTable::default();
        let names = ["amqp-user-id", "AMQP_USER_ID", "amqp.exchange", "Amqp-Routing_Key", "amqp-anything"];
        for name in names {
            table.insert(name.into(), native::long_string("admin"));
        }
        table.insert("amqpx".into(), native::long_string("theirs"));
        let message = plain(delivery("", BasicProperties::default().with_headers(table)));
        assert_eq!(message.headers().map(|(name, _)| name).collect::<Vec<_>>(), ["amqpx"]);
    }

    #[test]
    fn facts_of_the_broker_are_trusted_from_sealed_copies_only() {
        let sealing = |secret| OwnHeaders::authenticated(OwnSecrets::new(secret).unwrap());
        let own = sealing(b"0123456789abcdef");
        let first = delivery("shop", BasicProperties::default().with_user_id("till".into()));
        let message = to_message(first, "orders".into(), None, &own);
        let letter = onceward::Outgoing {
            destination: "dead".into(),
            headers: message
                .headers()
                .map(|(name, value)| (name.to_owned(), value.clone()))
                .chain([("onceward-reason".to_owned(), Bytes::from("permanent"))])
                .collect(),
            payload: message.payload().clone(),
            native: message.native().cloned(),
            ..onceward::Outgoing::default()
        };
        let sent = crate::publish::publishing::Publishing::new(&letter, 131_072, &own).unwrap().properties;
        let back = |properties: BasicProperties, own: &OwnHeaders| {
            let message = to_message(delivery("", properties), "orders".into(), None, own);
            ["amqp-exchange", "amqp-routing-key", "amqp-user-id"].map(|name| text(&message, name))
        };
        let facts = ["shop", "orders", "till"].map(|fact| Some(fact.to_owned()));
        assert_eq!(back(sent.clone(), &own), facts);
        assert_eq!(back(sent.clone(), &OwnHeaders::default()), [None, None, None]);
        assert_eq!(back(sent.clone(), &sealing(b"fedcba9876543210")), [None, None, None]);
        let mut changed = sent.headers().clone().unwrap();
        changed.insert("amqp-user-id".into(), native::long_string("admin"));
        assert_eq!(back(sent.clone().with_headers(changed), &own), [None, None, None]);
        let mut other = delivery("", sent);
        other.data = b"other".to_vec();
        assert_eq!(text(&to_message(other, "orders".into(), None, &own), "amqp-user-id"), None);
    }

    #[test]
    fn sanitized_or_deeply_nested_messages_have_a_defect() {
        let message = to_message(
            delivery("", BasicProperties::default()),
            "orders".into(),
            Some("odd"),
            &OwnHeaders::default(),
        );
        assert_eq!(message.defect(), Some(&Defect::Malformed { what: "odd".into() }));
        let mut value = AMQPValue::Boolean(true);
        for _ in 0..40 {
            value = AMQPValue::FieldArray(FieldArray::from(vec![value]));
        }
        let mut table = FieldTable::default();
        table.insert("deep".into(), value);
        let message = plain(delivery("", BasicProperties::default().with_headers(table)));
        assert!(message.defect().is_some());
        let form = message.native().and_then(Native::get::<RabbitmqForm>).unwrap();
        assert!(!form.has_header("deep"), "it would be written again");
    }

    #[test]
    fn an_unrepresentable_timestamp_is_dropped() {
        let properties = BasicProperties::default().with_timestamp(u64::MAX);
        assert_eq!(plain(delivery("", properties)).timestamp(), None);
    }
}
