//! A message in RabbitMQ's own form, so that its header types and properties survive every copy: [`RabbitForm`].

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use onceward::OwnHeaders;
use onceward::own_headers::{Seal, passes_for};

use crate::message::PREFIX;

/// Headers that a broker acts on or keeps its own books in: a copy must not carry them in that role.
const OF_THE_BROKER: [&str; 6] =
    ["cc", "bcc", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];
/// Where a copy keeps the expiration of its original. As a property it would let the broker delete the copy.
pub(crate) const EXPIRATION: &str = "amqp-expiration";
/// Where a copy keeps the user id of its original. The broker accepts only the publisher's own as a property.
pub(crate) const USER_ID: &str = "amqp-user-id";
pub(crate) const EXCHANGE: &str = "amqp-exchange";
pub(crate) const ROUTING_KEY: &str = "amqp-routing-key";

/// What the broker says of a message where it is first delivered, and a copy has to tell. As headers of a message these are
/// believed; as headers of a table anybody can write them, so that those of our copies are sealed.
pub(crate) const FACTS: &[&str] = &[EXCHANGE, ROUTING_KEY, USER_ID, EXPIRATION];
/// The header with the code over them.
pub(crate) const FACTS_MAC: &str = "onceward-facts-mac";
/// Their seal.
const SEAL: Seal = Seal { header: FACTS_MAC, covers: FACTS };

/// True for a header that a fact of the broker's could stand under.
pub(crate) fn passes_for_fact(name: &str) -> bool {
    passes_for(name, PREFIX)
}

/// Adds the seal of the facts that are among `headers`, if there is a secret and one of them.
pub(crate) fn seal_facts(headers: &mut BTreeMap<ShortString, AMQPValue>, own: &OwnHeaders, payload: &[u8]) {
    let pairs = || headers.iter().filter_map(text_of);
    if !pairs().any(|(name, _)| FACTS.contains(&name)) {
        return;
    }
    if let Some((name, value)) = own.seal_parts(&SEAL, pairs, Some(payload)) {
        headers.insert(name.into(), text(value));
    }
}

/// The facts that a copy of ours brings in its table.
pub(crate) fn believed_facts<'f>(
    form: &'f RabbitForm,
    own: &OwnHeaders,
    payload: &[u8],
) -> Vec<(&'static str, &'f [u8])> {
    let pairs = || form.headers().filter_map(text_of);
    if !FACTS.iter().any(|name| form.has_header(name)) || !own.believes_parts(&SEAL, pairs, Some(payload)) {
        return Vec::new();
    }
    let fact = |(name, value)| Some((*FACTS.iter().find(|fact| **fact == name)?, value));
    pairs().filter_map(fact).collect()
}

fn text_of<'f>((name, value): (&'f ShortString, &'f AMQPValue)) -> Option<(&'f str, &'f [u8])> {
    Some((name.as_str(), value.as_long_string()?.as_bytes()))
}

/// What the broker delivered, but for the payload.
#[derive(Debug)]
pub(crate) struct RabbitForm {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
}

impl RabbitForm {
    /// Its headers; none if it has no table of them.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&ShortString, &AMQPValue)> {
        self.properties.headers().iter().flat_map(|table| table.inner())
    }

    /// True if this header was sent, under this exact name.
    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.properties.headers().as_ref().is_some_and(|table| table.contains_key(name))
    }

    /// True if its `x-death` says only that it waited in our wait queues.
    pub(crate) fn has_only_waited(&self) -> bool {
        let table = self.properties.headers().as_ref();
        let deaths = table.and_then(|table| table.inner().get("x-death")).and_then(AMQPValue::as_array);
        let of_ours = |death: &AMQPValue| {
            let queue = death.as_field_table().and_then(|death| death.inner().get("queue"));
            let queue = queue.and_then(AMQPValue::as_long_string).map(ToString::to_string);
            queue.is_some_and(|queue| is_wait_queue(&queue))
        };
        deaths.is_some_and(|deaths| deaths.as_slice().iter().all(of_ours))
    }
}

/// True for the name of a wait queue, `QUEUE.wait.DELAYms`.
pub(crate) fn is_wait_queue(name: &str) -> bool {
    let delay = name.rsplit_once(".wait.").and_then(|(_, delay)| delay.strip_suffix("ms"));
    delay.is_some_and(|delay| !delay.is_empty() && delay.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The properties of a copy: all but headers, user id and, unless it is to `expire`, expiration. A copy is persistent,
/// whatever its original was.
pub(crate) fn copied(from: &BasicProperties, expire: bool) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(2);
    macro_rules! copy {
        ($($get:ident $set:ident),+) => {
            $(if let Some(value) = from.$get() {
                properties = properties.$set(value.clone());
            })+
        };
    }
    copy!(
        content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
        correlation_id with_correlation_id, reply_to with_reply_to, message_id with_message_id,
        timestamp with_timestamp, kind with_type, app_id with_app_id, cluster_id with_cluster_id
    );
    match from.expiration() {
        Some(expiration) if expire => properties.with_expiration(expiration.clone()),
        _ => properties,
    }
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
pub(crate) fn safe_name(name: &str) -> ShortString {
    let mut name = if is_of_the_broker(name) { format!("{PREFIX}{name}") } else { name.to_owned() };
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    ShortString::try_new(name).unwrap_or_default()
}

/// A text as RabbitMQ's own headers have it.
pub(crate) fn text(text: impl AsRef<[u8]>) -> AMQPValue {
    AMQPValue::LongString(text.as_ref().to_vec().into())
}

/// How many bytes a table takes on the wire, beyond its length field.
pub(crate) fn table_bytes(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| field_bytes(name.as_str(), value)).sum()
}

/// How many bytes a field of a table takes on the wire.
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

/// How many bytes a content header frame takes on the wire without its headers.
pub(crate) fn frame_bytes(properties: &BasicProperties) -> usize {
    /// The frame's own head and end, class, weight, body size, flags, and the length of the table.
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
    fn the_names_of_wait_queues_are_recognised() {
        assert!(is_wait_queue("orders.wait.800ms") && is_wait_queue("a.wait.b.wait.1ms"));
        for name in ["orders", "orders.wait.ms", "orders.wait.1s", "orders.wait.x1ms", "wait.1ms"] {
            assert!(!is_wait_queue(name), "{name}");
        }
    }

    #[test]
    fn a_message_that_only_waited_is_told_from_one_that_a_queue_dead_lettered() {
        let death = |queue: &str| {
            let mut table = FieldTable::default();
            table.insert("queue".into(), text(queue));
            AMQPValue::FieldTable(table)
        };
        for (queues, only_waited) in
            [(&["orders.wait.1ms"][..], true), (&["orders.wait.1ms", "orders"], false), (&["orders"], false)]
        {
            let deaths: FieldArray = queues.iter().copied().map(death).collect::<Vec<_>>().into();
            let mut headers = FieldTable::default();
            headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
            let properties = BasicProperties::default().with_headers(headers);
            let form = RabbitForm { exchange: "".into(), routing_key: "orders".into(), properties };
            assert_eq!(form.has_only_waited(), only_waited, "{queues:?}");
        }
    }
}
