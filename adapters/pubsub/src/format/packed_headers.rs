//! Packs headers that Pub/Sub would reject as attributes into attributes that it accepts: [`PackedAttributes`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::attributes::MAX_VALUE;

/// The first attribute with packed headers; further ones have a number after a hyphen, from 1.
const PACKED: &str = "onceward-headers";

/// Headers as a JSON array of arrays: name, value, and for a base64 value the word `base64`.
#[derive(Default)]
pub(crate) struct PackedAttributes(Vec<Value>);

impl PackedAttributes {
    pub(crate) fn add(&mut self, name: &str, value: &[u8]) {
        self.0.push(match std::str::from_utf8(value) {
            Ok(text) => json!([name, text]),
            Err(_) => json!([name, STANDARD.encode(value), "base64"]),
        });
    }

    /// The attributes that hold them: the JSON text, cut where an attribute is full.
    pub(crate) fn into_attributes(self) -> Vec<(String, String)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let text = Value::Array(self.0).to_string();
        let (mut rest, mut parts) = (text.as_str(), Vec::new());
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(MAX_VALUE));
            parts.push((part_name(parts.len()), part.to_owned()));
            rest = after;
        }
        parts
    }
}

fn part_name(number: usize) -> String {
    if number == 0 { PACKED.to_owned() } else { format!("{PACKED}-{number}") }
}

/// The number of the part that an attribute holds.
fn part_number(name: &str) -> Option<usize> {
    match name.strip_prefix(PACKED)? {
        "" => Some(0),
        rest => {
            let number = rest.strip_prefix('-')?.parse().ok().filter(|number| *number > 0)?;
            (part_name(number) == name).then_some(number)
        }
    }
}

/// True for an attribute that holds packed headers.
pub(crate) fn is_packed(name: &str) -> bool {
    part_number(name).is_some()
}

/// Parses the packed headers of a message; `None` if they are invalid or incomplete.
pub(crate) fn unpack<'a>(
    attributes: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<Vec<(String, Bytes)>> {
    let mut parts: Vec<_> =
        attributes.filter_map(|(name, value)| Some((part_number(name)?, value))).collect();
    parts.sort_unstable_by_key(|(number, _)| *number);
    if parts.is_empty() {
        return Some(Vec::new());
    }
    if !parts.iter().enumerate().all(|(place, (number, _))| place == *number) {
        return None;
    }
    let text: String = parts.into_iter().map(|(_, value)| value).collect();
    let Ok(Value::Array(all)) = serde_json::from_str(&text) else { return None };
    let header = |header: &Value| {
        let (name, value) = (header.get(0)?.as_str()?, header.get(1)?.as_str()?);
        let value = match header.get(2) {
            None => Bytes::copy_from_slice(value.as_bytes()),
            Some(_) => STANDARD.decode(value).ok()?.into(),
        };
        Some((name.to_owned(), value))
    };
    all.iter().map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(attributes: &[(String, String)]) -> Option<Vec<(String, Bytes)>> {
        unpack(attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    #[test]
    fn headers_of_any_bytes_and_length_come_back() {
        let long = "é".repeat(3 * MAX_VALUE);
        let headers =
            [("a", &b"1"[..]), ("a", b"2"), ("", b""), ("goog-x", b"\xff\x00"), ("long", long.as_bytes())];
        let mut packed = PackedAttributes::default();
        for (name, value) in headers {
            packed.add(name, value);
        }
        let attributes = packed.into_attributes();
        assert!(attributes.len() > 6 && attributes.iter().all(|(_, value)| value.len() <= MAX_VALUE));
        let back = unpacked(&attributes).unwrap();
        let expected = headers.map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value)));
        assert_eq!(back, expected);
    }

    #[test]
    fn incomplete_or_foreign_parts_are_found() {
        let part = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(unpacked(&[part("x", "y")]), Some(Vec::new()));
        assert_eq!(unpacked(&[part(PACKED, "[")]), None);
        assert_eq!(unpacked(&[part("onceward-headers-1", "[]")]), None);
        for name in ["onceward-headers-0", "onceward-headers-01", "onceward-headers-x", "onceward-headersx"] {
            assert!(!is_packed(name), "{name}");
        }
        assert!(is_packed("onceward-headers") && is_packed("onceward-headers-12"));
    }
}
