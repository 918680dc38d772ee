//! The native form of a RabbitMQ message, which keeps header types and properties across copies: [`RabbitmqForm`].

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use onceward::OwnHeaders;
use onceward::own_headers::{Seal, passes_for};

use crate::format::property_headers::PREFIX;

/// Headers that the broker acts on or writes itself: a copy must not carry them under these names.
const BROKER_HEADERS: [&str; 6] =
    ["cc", "bcc", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];
/// The header with the expiration of the original. As a property it would let the broker delete the copy.
pub(crate) const EXPIRATION: &str = "amqp-expiration";
/// The header with the user id of the original. As a property the broker accepts only the publisher's own.
pub(crate) const USER_ID: &str = "amqp-user-id";
pub(crate) const EXCHANGE: &str = "amqp-exchange";
pub(crate) const ROUTING_KEY: &str = "amqp-routing-key";

/// Facts that the broker states about a delivery and that a copy carries as headers. As headers of a
/// [`Message`](onceward::Message) they are trusted; in a header table anybody can write them, so copies of ours are
/// sealed.
pub(crate) const FACTS: &[&str] = &[EXCHANGE, ROUTING_KEY, USER_ID, EXPIRATION];
/// The header with the seal of the facts.
pub(crate) const FACTS_MAC: &str = "onceward-facts-mac";
/// The seal of the facts.
const SEAL: Seal = Seal { header: FACTS_MAC, covers: FACTS };

/// True for a header name that imitates a fact of the broker.
pub(crate) fn imitates_fact(name: &str) -> bool {
    passes_for(name, PREFIX)
}

/// Adds the seal of the facts among `headers`, if there is a secret and at least one fact.
pub(crate) fn seal_facts(headers: &mut BTreeMap<ShortString, AMQPValue>, own: &OwnHeaders, payload: &[u8]) {
    let pairs = || headers.iter().filter_map(long_string_field);
    if !pairs().any(|(name, _)| FACTS.contains(&name)) {
        return;
    }
    if let Some((name, value)) = own.seal_parts(&SEAL, pairs, Some(payload)) {
        headers.insert(name.into(), long_string(value));
    }
}

/// The facts in a sealed copy of ours; empty if the seal is not trusted.
pub(crate) fn trusted_facts<'f>(
    form: &'f RabbitmqForm,
    own: &OwnHeaders,
    payload: &[u8],
) -> Vec<(&'static str, &'f [u8])> {
    let pairs = || form.headers().filter_map(long_string_field);
    if !FACTS.iter().any(|name| form.has_header(name)) || !own.believes_parts(&SEAL, pairs, Some(payload)) {
        return Vec::new();
    }
    let fact = |(name, value)| Some((*FACTS.iter().find(|fact| **fact == name)?, value));
    pairs().filter_map(fact).collect()
}

fn long_string_field<'f>((name, value): (&'f ShortString, &'f AMQPValue)) -> Option<(&'f str, &'f [u8])> {
    Some((name.as_str(), value.as_long_string()?.as_bytes()))
}

/// A delivery without its payload.
#[derive(Debug)]
pub(crate) struct RabbitmqForm {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
}

impl RabbitmqForm {
    /// The headers; none without a header table.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&ShortString, &AMQPValue)> {
        self.properties.headers().iter().flat_map(|table| table.inner())
    }

    /// True if there is a header of this exact name.
    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.properties.headers().as_ref().is_some_and(|table| table.contains_key(name))
    }

    /// True if its `x-death` names only our delay queues.
    pub(crate) fn was_only_delayed(&self) -> bool {
        let table = self.properties.headers().as_ref();
        let deaths = table.and_then(|table| table.inner().get("x-death")).and_then(AMQPValue::as_array);
        let is_delay_queue = |death: &AMQPValue| {
            let queue = death.as_field_table().and_then(|death| death.inner().get("queue"));
            let queue = queue.and_then(AMQPValue::as_long_string).map(ToString::to_string);
            queue.is_some_and(|queue| is_delay_queue_name(&queue))
        };
        deaths.is_some_and(|deaths| deaths.as_slice().iter().all(is_delay_queue))
    }
}

/// True for the name of a delay queue, `QUEUE.wait.DELAYms`.
pub(crate) fn is_delay_queue_name(name: &str) -> bool {
    let delay = name.rsplit_once(".wait.").and_then(|(_, delay)| delay.strip_suffix("ms"));
    delay.is_some_and(|delay| !delay.is_empty() && delay.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The properties of a copy: all but headers, user id and, unless `expire`, expiration. A copy is always persistent.
pub(crate) fn copy_properties(source: &BasicProperties, expire: bool) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(2);
    macro_rules! copy {
        ($($get:ident $set:ident),+) => {
            $(if let Some(value) = source.$get() {
                properties = properties.$set(value.clone());
            })+
        };
    }
    copy!(
        content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
        correlation_id with_correlation_id, reply_to with_reply_to, message_id with_message_id,
        timestamp with_timestamp, kind with_type, app_id with_app_id, cluster_id with_cluster_id
    );
    match source.expiration() {
        Some(expiration) if expire => properties.with_expiration(expiration.clone()),
        _ => properties,
    }
}

/// True if a broker acts on headers of this name or writes them itself.
pub(crate) fn is_broker_header(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    BROKER_HEADERS.iter().any(|own| match own.strip_suffix('-') {
        Some(_) => lower.starts_with(own),
        None => lower == *own,
    })
}

/// Returns a header name that AMQP can carry and the broker does not act on.
pub(crate) fn safe_header_name(name: &str) -> ShortString {
    let mut name = if is_broker_header(name) { format!("{PREFIX}{name}") } else { name.to_owned() };
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    ShortString::try_new(name).unwrap_or_default()
}

/// A long string, the type that RabbitMQ uses in its own headers.
pub(crate) fn long_string(text: impl AsRef<[u8]>) -> AMQPValue {
    AMQPValue::LongString(text.as_ref().to_vec().into())
}

/// The size of a table on the wire in bytes, without its length field.
pub(crate) fn table_bytes(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| field_bytes(name.as_str(), value)).sum()
}

/// The size of a table field on the wire in bytes.
pub(crate) fn field_bytes(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + value_bytes(value)
}

fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => 4 + table_bytes(table),
    }
}

/// The size of a content header frame on the wire in bytes, without its headers.
pub(crate) fn frame_bytes(properties: &BasicProperties) -> usize {
    /// Frame head and end, class, weight, body size, flags, and the length of the table.
    const FIXED: usize = 8 + 2 + 2 + 8 + 2 + 4;
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    // Delivery mode, priority and timestamp.
    FIXED + texts + 1 + 1 + 8
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    #[test]
    fn the_names_of_delay_queues_are_recognised() {
        assert!(is_delay_queue_name("orders.wait.800ms") && is_delay_queue_name("a.wait.b.wait.1ms"));
        for name in ["orders", "orders.wait.ms", "orders.wait.1s", "orders.wait.x1ms", "wait.1ms"] {
            assert!(!is_delay_queue_name(name), "{name}");
        }
    }

    #[test]
    fn delayed_and_dead_lettered_messages_are_distinguished() {
        let death = |queue: &str| {
            let mut table = FieldTable::default();
            table.insert("queue".into(), long_string(queue));
            AMQPValue::FieldTable(table)
        };
        for (queues, only_delayed) in
            [(&["orders.wait.1ms"][..], true), (&["orders.wait.1ms", "orders"], false), (&["orders"], false)]
        {
            let deaths: FieldArray = queues.iter().copied().map(death).collect::<Vec<_>>().into();
            let mut headers = FieldTable::default();
            headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
            let properties = BasicProperties::default().with_headers(headers);
            let form = RabbitmqForm { exchange: "".into(), routing_key: "orders".into(), properties };
            assert_eq!(form.was_only_delayed(), only_delayed, "{queues:?}");
        }
    }
}
