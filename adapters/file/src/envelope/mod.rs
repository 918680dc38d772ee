//! Parses and writes envelopes: one JSON object per line.

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

/// The content of an envelope.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub id: Option<String>,
    pub order_key: Option<Bytes>,
    pub timestamp: Option<SystemTime>,
    pub headers: Vec<(String, Bytes)>,
    pub payload: Bytes,
    /// There is no payload, as in a Kafka tombstone.
    pub null_payload: bool,
}

impl Envelope {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }
}

/// Parses one line.
///
/// # Errors
/// A description of the defect, without the content.
pub(crate) fn parse(line: &[u8]) -> Result<Envelope, String> {
    let fields: EnvelopeFields<'_> = serde_json::from_slice(line).map_err(|error| describe(&error))?;
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

/// The payload: the content of a string, or the text of any other value.
fn payload(raw: &RawValue) -> serde_json::Result<Bytes> {
    if raw.get().starts_with('"') {
        return serde_json::from_str::<String>(raw.get()).map(Bytes::from);
    }
    Ok(Bytes::copy_from_slice(raw.get().as_bytes()))
}

/// Describes an error by its kind and position: serde_json would quote the value, which may be a secret.
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
struct EnvelopeFields<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    headers: EnvelopeHeaders,
    #[serde(default)]
    order_key: Option<EncodedBytes>,
    #[serde(default)]
    timestamp_ms: Option<u64>,
    #[serde(default)]
    null_payload: bool,
    #[serde(borrow, default, deserialize_with = "given")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload_base64: Option<Cow<'a, str>>,
}

/// Deserializes a field that is present: `null` is a payload, not a missing one.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Headers in their order; a name may have a list of values, or occur several times.
#[derive(Default)]
struct EnvelopeHeaders(Vec<(String, Bytes)>);

impl<'de> Deserialize<'de> for EnvelopeHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = EnvelopeHeaders;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of headers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EnvelopeHeaders, A::Error> {
                let mut headers = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    match map.next_value()? {
                        OneOrMore::One(value) => headers.push((name, value.0)),
                        OneOrMore::More(values) => {
                            headers.extend(values.into_iter().map(|value| (name.clone(), value.0)));
                        }
                    }
                }
                Ok(EnvelopeHeaders(headers))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// Bytes: a string, or `{"base64": "…"}` for bytes that are not UTF-8.
struct EncodedBytes(Bytes);

/// A value, or a list of values.
enum OneOrMore {
    One(EncodedBytes),
    More(Vec<EncodedBytes>),
}

/// Deserializes [`OneOrMore`].
struct ValuesVisitor;

impl<'de> Visitor<'de> for ValuesVisitor {
    type Value = OneOrMore;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, {\"base64\": \"…\"}, or a list of these")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMore, E> {
        Ok(OneOrMore::One(EncodedBytes(Bytes::copy_from_slice(text.as_bytes()))))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<OneOrMore, E> {
        Ok(OneOrMore::One(EncodedBytes(Bytes::from(text))))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OneOrMore, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct PayloadInBase64 {
            base64: String,
        }
        let wrapped = PayloadInBase64::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        let bytes = BASE64.decode(wrapped.base64).map_err(|_| serde::de::Error::custom(NOT_BASE64))?;
        Ok(OneOrMore::One(EncodedBytes(Bytes::from(bytes))))
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
        deserializer.deserialize_any(ValuesVisitor)
    }
}

impl<'de> Deserialize<'de> for EncodedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(ValuesVisitor)? {
            OneOrMore::One(value) => Ok(value),
            OneOrMore::More(_) => Err(serde::de::Error::custom("a list where one value should be")),
        }
    }
}

/// Appends `message` to `line` as one envelope with its newline.
///
/// A payload that is a JSON object or list on one line is written unchanged, so that JSON tools can query it; other UTF-8 becomes
/// a string, and other bytes base64. [`parse`] returns the same bytes in each case.
pub(crate) fn write(message: &Outgoing, line: &mut Vec<u8>) -> serde_json::Result<()> {
    let mut serializer = serde_json::Serializer::new(&mut *line);
    let mut map = serializer.serialize_map(None)?;
    if !message.id.is_empty() {
        map.serialize_entry("id", &message.id)?;
    }
    if let Some(order_key) = &message.order_key {
        map.serialize_entry("order_key", &TextOrBase64(order_key))?;
    }
    let since = message.timestamp.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    if let Some(millis) = since.and_then(|since| u64::try_from(since.as_millis()).ok()) {
        map.serialize_entry("timestamp_ms", &millis)?;
    }
    let headers = headers_of(message);
    if !headers.is_empty() {
        map.serialize_entry("headers", &GroupedHeaders(&headers))?;
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

/// The possible beginnings of lines that [`write`] produces.
pub(crate) const BEGINNINGS: [&str; 7] = [
    "{\"id\":",
    "{\"order_key\":",
    "{\"timestamp_ms\":",
    "{\"headers\":",
    "{\"null_payload\":",
    "{\"payload\":",
    "{\"payload_base64\":",
];

/// The headers to write: onceward's id replaces one that the message arrived with.
fn headers_of(message: &Outgoing) -> Vec<(&str, &[u8])> {
    let own = !message.own_id.is_empty();
    let stays = |name: &str| !(own && name == HEADER_ID);
    let headers = message.headers.iter().filter(|(name, _)| stays(name));
    let headers = headers.map(|(name, value)| (name.as_str(), &value[..]));
    headers.chain(own.then_some((HEADER_ID, message.own_id.as_bytes()))).collect()
}

/// The payload as JSON, if embedding it preserves its bytes.
fn embeddable(payload: &[u8]) -> Option<&RawValue> {
    if !matches!(payload.first(), Some(b'{' | b'[')) || payload.contains(&b'\n') {
        return None;
    }
    let json: &RawValue = serde_json::from_slice(payload).ok()?;
    (json.get().len() == payload.len()).then_some(json)
}

/// Serializes bytes as a string, or as base64 if they are not UTF-8.
struct TextOrBase64<'a>(&'a [u8]);

impl Serialize for TextOrBase64<'_> {
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

/// Headers by name: the values of a repeated name become a list, at the place of the first.
struct GroupedHeaders<'a>(&'a [(&'a str, &'a [u8])]);

impl Serialize for GroupedHeaders<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut groups: Vec<(&str, Vec<TextOrBase64<'_>>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for (name, value) in self.0 {
            let at = *places.entry(*name).or_insert_with(|| {
                groups.push((name, Vec::new()));
                groups.len() - 1
            });
            groups[at].1.push(TextOrBase64(value));
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
