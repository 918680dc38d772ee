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
    headers.chain(own.then(|| (HEADER_ID, message.own_id.as_bytes()))).collect()
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload_of(line: &str) -> String {
        String::from_utf8(parse(line.as_bytes()).unwrap().payload.to_vec()).unwrap()
    }

    #[test]
    fn a_string_is_the_payload_and_of_other_values_their_text_is() {
        assert_eq!(payload_of(r#"{"payload":"a\nb\u0000"}"#), "a\nb\0");
        assert_eq!(payload_of(r#"{"payload": {"b": 1,  "a":[1.10]} }"#), r#"{"b": 1,  "a":[1.10]}"#);
        assert_eq!(payload_of(r#"{"payload":17.0}"#), "17.0");
        assert_eq!(payload_of(r#"{"payload":null}"#), "null");
        assert_eq!(payload_of(r#"{"payload":""}"#), "");
        assert_eq!(payload_of(r#"{"payload_base64":"aGk="}"#), "hi");
    }

    #[test]
    fn headers_keep_their_order_repeat_and_need_not_be_text() {
        let line = r#"{"id":"7","headers":{"b":"1","a":["2",{"base64":"/w=="}],"b":"3"},"order_key":"k","payload":1}"#;
        let envelope = parse(line.as_bytes()).unwrap();
        let headers: Vec<_> = envelope.headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(headers, [("b", &b"1"[..]), ("a", b"2"), ("a", b"\xff"), ("b", b"3")]);
        assert_eq!((envelope.id.as_deref(), envelope.order_key.as_deref()), (Some("7"), Some(&b"k"[..])));
    }

    #[test]
    fn what_is_no_envelope_is_refused_without_quoting_it() {
        for (line, what) in [
            (r#"{"payload":1,"hunter2":1}"#, "a field is unknown"),
            (r#"{"payload":1,"payload":2}"#, "given twice"),
            (r#"{"payload":1,"id":hunter2}"#, "not valid JSON"),
            (r#"{"payload":"hunter2"#, "ends too early"),
            (r#"{"payload":1,"id":["hunter2"]}"#, "not of the type"),
            (r#"{"payload":1,"headers":{"hunter2":5}}"#, "not of the type"),
            (r#"{"payload":1,"headers":{"a":{"base64":"hunter2"}}}"#, "not base64"),
            (r#"{"payload":1,"order_key":["hunter2"]}"#, "not of the type"),
            (r#"{"payload_base64":"hunter2"}"#, "payload_base64 is not base64"),
            (r#"{"payload_base64":"","payload":"hunter2"}"#, "give one"),
            (r#"{"id":"hunter2"}"#, "neither"),
            (r#""hunter2""#, "not of the type"),
            ("\u{feff}{}", "not valid JSON"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(what), "{line}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(parse(b"{\"payload\":\"\xff\"}").is_err());
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_is_refused_in_a_payload() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(payload_of(&format!(r#"{{"payload":{deep}}}"#)), deep);
        assert!(parse(format!(r#"{{"payload":1,"headers":{{"a":{deep}}}}}"#).as_bytes()).is_err());
    }

    fn written(message: &Outgoing) -> String {
        let mut line = Vec::new();
        write(message, &mut line).unwrap();
        String::from_utf8(line).unwrap()
    }

    fn with_payload(payload: &'static [u8]) -> Outgoing {
        Outgoing { id: "1".into(), payload: Bytes::from_static(payload), ..Outgoing::default() }
    }

    #[test]
    fn a_payload_is_written_as_readable_as_its_bytes_allow() {
        assert_eq!(written(&with_payload(br#"{"a":1}"#)), "{\"id\":\"1\",\"payload\":{\"a\":1}}\n");
        assert_eq!(
            written(&with_payload(b"{\"a\":\n1}")),
            "{\"id\":\"1\",\"payload\":\"{\\\"a\\\":\\n1}\"}\n"
        );
        assert_eq!(written(&with_payload(b"\"x\"")), "{\"id\":\"1\",\"payload\":\"\\\"x\\\"\"}\n");
        assert_eq!(written(&with_payload(b"\xff")), "{\"id\":\"1\",\"payload_base64\":\"/w==\"}\n");
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
            "\\PC{0,20}".prop_map(Bytes::from),
            r#" ?[{\[]("a": ?[0-9\n\r]{1,3})?[}\]] ?"#.prop_map(Bytes::from),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(
            id in "\\PC{0,8}",
            payload in bytes(),
            order_key in prop::option::of(bytes()),
            headers in prop::collection::vec(("[a-c\\n\"]{0,2}", bytes()), 0..6),
            own_id in "[a-f0-9]{0,4}",
            millis in prop::option::of(0_u64..10_000_000_000_000),
            null_payload: bool,
        ) {
            let mut expected = headers.clone();
            let place = |name: &String| headers.iter().position(|(own, _)| own == name);
            expected.sort_by_key(|(name, _)| place(name));
            if !own_id.is_empty() {
                expected.push((HEADER_ID.to_owned(), own_id.clone().into()));
            }
            let timestamp = millis.map(|millis| UNIX_EPOCH + Duration::from_millis(millis));
            let payload = if null_payload { Bytes::new() } else { payload };
            let message = Outgoing {
                id: id.clone(),
                own_id,
                order_key: order_key.clone(),
                timestamp,
                headers,
                payload: payload.clone(),
                null_payload,
                ..Outgoing::default()
            };
            let line = written(&message);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(BEGINNINGS.iter().any(|beginning| line.starts_with(beginning)), "{}", line);
            let read = parse(line.trim_end_matches('\n').as_bytes()).unwrap();
            let id = Some(id).filter(|id| !id.is_empty());
            prop_assert_eq!(read, Envelope { id, order_key, timestamp, headers: expected, payload, null_payload });
        }
    }
}
