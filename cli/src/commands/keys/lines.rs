//! Parses a line of an import: a key, and how long ago its effect happened.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onceward::{Key, KeyExtractor};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::naming::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportLine<'a> {
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    age: Option<String>,
    #[serde(borrow, default)]
    completed_at: Option<&'a RawValue>,
}

/// Parses a line: the key, and how long ago it was completed.
///
/// # Errors
/// A description of the mistake, which does not quote the line.
pub(super) fn read(line: &str, keys: &KeyExtractor, now: SystemTime) -> Result<(Key, Duration), String> {
    let line: ImportLine<'_> = serde_json::from_str(line).map_err(|error| {
        use serde_json::error::Category;
        let what = match error.classify() {
            Category::Data => r#"is not an object of "key" or "hash", and "age" or "completed_at""#,
            Category::Eof => "is incomplete",
            Category::Syntax | Category::Io => "is not JSON",
        };
        what.to_owned()
    })?;
    let key = match (line.key, line.hash) {
        (Some(value), None) => key(value, keys)?,
        (None, Some(hash)) => Key::from_hex(&hash).ok_or("its hash is not 32 hexadecimal digits")?,
        (None, None) => return Err(r#"has neither "key" nor "hash""#.to_owned()),
        (Some(_), Some(_)) => return Err(r#"has both "key" and "hash""#.to_owned()),
    };
    let age = match (line.age, line.completed_at) {
        (None, None) => Duration::ZERO,
        (Some(age), None) => humantime::parse_duration(&age)
            .map_err(|_| r#"its age is not a duration such as "90s", "3h" or "2d""#.to_owned())?,
        (None, Some(at)) => age_at(at, now)?,
        (Some(_), Some(_)) => return Err(r#"has both "age" and "completed_at""#.to_owned()),
    };
    Ok((key, age))
}

fn key(value: &RawValue, keys: &KeyExtractor) -> Result<Key, String> {
    let none = || "its key is not a string, number, boolean, or list of these".to_owned();
    let values = match value.get().as_bytes().first() {
        Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(value.get())
            .map_err(|_| none())?
            .into_iter()
            .map(|value| Value::from_json(value).ok_or_else(none))
            .collect::<Result<Vec<_>, _>>()?,
        _ => vec![Value::from_json(value).ok_or_else(none)?],
    };
    let texts: Vec<_> = values.iter().map(Value::as_key_text).collect();
    let found = keys.keys_from_text(0, &texts).map_err(|error| error.to_string())?;
    // With types there is only one interpretation.
    found.first().copied().ok_or_else(none)
}

/// RFC 3339 in UTC, or whole seconds since 1970.
fn age_at(at: &RawValue, now: SystemTime) -> Result<Duration, String> {
    let invalid = || {
        r#"its completed_at is not a UTC time such as "2026-01-02T03:04:05Z", nor seconds since 1970"#
            .to_owned()
    };
    let at = match serde_json::from_str::<String>(at.get()) {
        Ok(text) => humantime::parse_rfc3339_weak(&text).map_err(|_| invalid())?,
        Err(_) => {
            let seconds: u64 = at.get().parse().map_err(|_| invalid())?;
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(invalid)?
        }
    };
    now.duration_since(at)
        .map_err(|_| "its completed_at is in the future; check for milliseconds, or a wrong clock".to_owned())
}

#[cfg(test)]
mod tests {
    use onceward::{KeySource, KeyText, Scope};

    use super::*;

    fn extractor(sources: Vec<KeySource>) -> KeyExtractor {
        KeyExtractor::new(&Scope::parse("billing").unwrap(), sources)
    }

    #[test]
    fn a_line_names_its_key_as_the_messages_do() {
        let keys = extractor(vec![KeySource::JsonPointer("/id".into())]);
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let key_of = |text| keys.keys_from_text(0, &[text]).unwrap()[0];
        for (line, key, age) in [
            (r#"{"key":"42"}"#, KeyText::Text("42"), 0),
            (r#"{"key":42,"age":"3h"}"#, KeyText::Literal("42"), 10_800),
            (r#"{"key":true,"completed_at":999940}"#, KeyText::Literal("true"), 60),
            (r#"{"key":"a","completed_at":"1970-01-12T13:45:40Z"}"#, KeyText::Text("a"), 60),
        ] {
            assert_eq!(read(line, &keys, now), Ok((key_of(key), Duration::from_secs(age))), "{line}");
        }
        let hash = key_of(KeyText::Text("a"));
        assert_eq!(read(&format!(r#"{{"hash":"{hash}"}}"#), &keys, now), Ok((hash, Duration::ZERO)));
        let pair = extractor(vec![KeySource::Composite(vec![KeySource::MessageId, KeySource::MessageId])]);
        assert!(read(r#"{"key":["a","b"]}"#, &pair, now).is_ok());
    }

    #[test]
    fn an_invalid_line_is_described_without_being_quoted() {
        let keys = extractor(vec![KeySource::JsonPointer("/id".into())]);
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (line, what) in [
            ("hunter2", "is not JSON"),
            (r#"{"key":"hunter2"#, "is incomplete"),
            (r#"{"key":"a","hunter2":1}"#, "is not an object of"),
            (r#"{"age":"3h"}"#, "neither"),
            (r#"{"key":"a","hash":"00"}"#, "both"),
            (r#"{"hash":"hunter2"}"#, "32 hexadecimal"),
            (r#"{"key":{"hunter2":1}}"#, "not a string"),
            (r#"{"key":null}"#, "neither"),
            (r#"{"key":["a","hunter2"]}"#, "as many values"),
            (r#"{"key":""}"#, "no idempotency key"),
            (r#"{"key":"a","age":"hunter2"}"#, "not a duration"),
            (r#"{"key":"a","completed_at":"hunter2"}"#, "not a UTC time"),
            (r#"{"key":"a","completed_at":1763718843000}"#, "future"),
            (r#"{"key":"a","age":"1s","completed_at":1}"#, "both"),
        ] {
            let error = read(line, &keys, now).unwrap_err();
            assert!(error.contains(what) && !error.contains("hunter2"), "{line}: {error}");
        }
    }
}
