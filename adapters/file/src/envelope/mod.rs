//! The envelope format: one JSON object a line, read by the consumer and written by the publisher.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use onceward::Outgoing;
use onceward::dead_letter::HEADER_ID;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

/// What an envelope holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub id: Option<String>,
    pub order_key: Option<Bytes>,
    pub timestamp: Option<SystemTime>,
    pub headers: Vec<(String, Bytes)>,
    pub payload: Bytes,
    /// There is no payload at all, as in a Kafka tombstone.
    pub null_payload: bool,
}

impl Envelope {
    /// The value of a header; of one that repeats the first.
    pub(crate) fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }
}

/// Reads one line; the error says what is wrong with it, without its content.
pub(crate) fn parse(line: &[u8]) -> Result<Envelope, String> {
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(|error| describe(&error))?;
    let payload = match (fields.payload, fields.payload_base64) {
        (None, None) if fields.null_payload => Bytes::new(),
        (_, _) if fields.null_payload => {
            return Err("it has null_payload and a payload; give one".to_owned());
        }
        (Some(raw), None) => payload(raw).map_err(|error| describe(&error))?,
        (None, Some(base64)) => BASE64
            .decode(base64.as_bytes())
            .map(Bytes::from)
            .map_err(|_| "payload_base64 is not base64 (the standard alphabet, padded)".to_owned())?,
        (None, None) => return Err("it has neither a payload nor a payload_base64".to_owned()),
        (Some(_), Some(_)) => return Err("it has a payload and a payload_base64; give one".to_owned()),
    };
    let time = |millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis));
    Ok(Envelope {
        id: fields.id.map(Cow::into_owned).filter(|id| !id.is_empty()),
        order_key: fields.order_key.map(|value| value.0),
        timestamp: fields.timestamp_ms.and_then(time),
        headers: fields.headers.0,
        payload,
        null_payload: fields.null_payload,
    })
}

/// A string is the payload itself; of any other value its text is.
fn payload(raw: &RawValue) -> serde_json::Result<Bytes> {
    if raw.get().starts_with('"') {
        return serde_json::from_str::<String>(raw.get()).map(Bytes::from);
    }
    Ok(Bytes::copy_from_slice(raw.get().as_bytes()))
}

/// serde_json quotes what it found, which may be a secret: say where and what kind of fault it is.
fn describe(error: &serde_json::Error) -> String {
    let at = error.column();
    match error.classify() {
        Category::Syntax | Category::Io => format!("it is not valid JSON at byte {at}"),
        Category::Eof => "its JSON ends too early".to_owned(),
        Category::Data => {
            let text = error.to_string();
            let what = match () {
                () if text.starts_with("unknown field") => "a field is unknown",
                () if text.starts_with("duplicate field") => "a field is given twice",
                () if text.contains(NOT_BASE64) => NOT_BASE64,
                () => "a value is not of the type it should be",
            };
            format!(
                "{what}, at byte {at}; an envelope is an object of id, headers, order_key, timestamp_ms, payload, \
                 payload_base64 or null_payload"
            )
        }
    }
}

const NOT_BASE64: &str = "a base64 value is not base64";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    order_key: Option<Value>,
    #[serde(default)]
    timestamp_ms: Option<u64>,
    #[serde(default)]
    null_payload: bool,
    #[serde(borrow, default, deserialize_with = "given")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload_base64: Option<Cow<'a, str>>,
}

/// `null` is a payload, not the lack of one.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Headers in the order they are written; a name may come with a list, or several times.
#[derive(Default)]
struct Headers(Vec<(String, Bytes)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of headers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    match map.next_value()? {
                        OneOrMore::One(value) => headers.push((name, value.0)),
                        OneOrMore::More(values) => {
                            headers.extend(values.into_iter().map(|value| (name.clone(), value.0)));
                        }
                    }
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// Bytes: a string, or `{"base64": "…"}` for what is not UTF-8.
struct Value(Bytes);

enum OneOrMore {
    One(Value),
    More(Vec<Value>),
}

/// Reads [`OneOrMore`].
struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = OneOrMore;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, {\"base64\": \"…\"}, or a list of these")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMore, E> {
        Ok(OneOrMore::One(Value(Bytes::copy_from_slice(text.as_bytes()))))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<OneOrMore, E> {
        Ok(OneOrMore::One(Value(Bytes::from(text))))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OneOrMore, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Base64 {
            base64: String,
        }
        let wrapped = Base64::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        let bytes = BASE64.decode(wrapped.base64).map_err(|_| serde::de::Error::custom(NOT_BASE64))?;
        Ok(OneOrMore::One(Value(Bytes::from(bytes))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(OneOrMore::More(values))
    }
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(Values)? {
            OneOrMore::One(value) => Ok(value),
            OneOrMore::More(_) => Err(serde::de::Error::custom("a list where one value should be")),
        }
    }
}

/// Appends `message` to `line` as one envelope with its newline.
///
/// A payload that is a JSON object or list on one line is written as it is, so that tools for JSON find their way in it;
/// other UTF-8 becomes a string and the rest base64. [`parse`] gives back the same bytes in each case.
pub(crate) fn write(message: &Outgoing, line: &mut Vec<u8>) -> serde_json::Result<()> {
    let mut serializer = serde_json::Serializer::new(&mut *line);
    let mut map = serializer.serialize_map(None)?;
    if !message.id.is_empty() {
        map.serialize_entry("id", &message.id)?;
    }
    if let Some(order_key) = &message.order_key {
        map.serialize_entry("order_key", &Text(order_key))?;
    }
    let since = message.timestamp.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    if let Some(millis) = since.and_then(|since| u64::try_from(since.as_millis()).ok()) {
        map.serialize_entry("timestamp_ms", &millis)?;
    }
    let headers = headers_of(message);
    if !headers.is_empty() {
        map.serialize_entry("headers", &Grouped(&headers))?;
    }
    if message.null_payload {
        map.serialize_entry("null_payload", &true)?;
    } else if let Some(json) = embeddable(&message.payload) {
        map.serialize_entry("payload", json)?;
    } else if let Ok(text) = std::str::from_utf8(&message.payload) {
        map.serialize_entry("payload", text)?;
    } else {
        map.serialize_entry("payload_base64", &BASE64.encode(&message.payload))?;
    }
    map.end()?;
    line.push(b'\n');
    Ok(())
}

/// How the lines that [`write`] makes begin.
pub(crate) const BEGINNINGS: [&str; 7] = [
    "{\"id\":",
    "{\"order_key\":",
    "{\"timestamp_ms\":",
    "{\"headers\":",
    "{\"null_payload\":",
    "{\"payload\":",
    "{\"payload_base64\":",
];

/// The headers as they are written: our own id replaces one that the message came with.
fn headers_of(message: &Outgoing) -> Vec<(&str, &[u8])> {
    let own = !message.own_id.is_empty();
    let stays = |name: &str| !(own && name == HEADER_ID);
    let headers = message.headers.iter().filter(|(name, _)| stays(name));
    let headers = headers.map(|(name, value)| (name.as_str(), &value[..]));
    headers.chain(own.then_some((HEADER_ID, message.own_id.as_bytes()))).collect()
}

/// The payload as JSON, if its bytes survive being written into the line.
fn embeddable(payload: &[u8]) -> Option<&RawValue> {
    if !matches!(payload.first(), Some(b'{' | b'[')) || payload.contains(&b'\n') {
        return None;
    }
    let json: &RawValue = serde_json::from_slice(payload).ok()?;
    (json.get().len() == payload.len()).then_some(json)
}

struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &BASE64.encode(self.0))?;
                map.end()
            }
        }
    }
}

/// Headers by name: a name that repeats becomes a list, at the place where it came first.
struct Grouped<'a>(&'a [(&'a str, &'a [u8])]);

impl Serialize for Grouped<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut groups: Vec<(&str, Vec<Text<'_>>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for (name, value) in self.0 {
            let at = *places.entry(*name).or_insert_with(|| {
                groups.push((name, Vec::new()));
                groups.len() - 1
            });
            groups[at].1.push(Text(value));
        }
        let mut map = serializer.serialize_map(Some(groups.len()))?;
        for (name, values) in groups {
            match &values[..] {
                [value] => map.serialize_entry(name, value)?,
                values => map.serialize_entry(name, values)?,
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
