//! `[key] fingerprint`: what of payloads under one key is compared.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use super::key::KeyPart;

/// The part of payloads under one key that is compared, to distinguish a copy from another message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FingerprintConfig {
    /// `json`: the value of a JSON object or array, regardless of spacing, member order and escapes; the bytes of
    /// anything else.
    #[default]
    Json,
    /// `bytes`: the bytes.
    Bytes,
    /// `off`: nothing.
    Off,
    /// The values at these JSON pointers; never empty.
    Pointers(Vec<String>),
}

impl Serialize for FingerprintConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json => serializer.serialize_str("json"),
            Self::Bytes => serializer.serialize_str("bytes"),
            Self::Off => serializer.serialize_str("off"),
            Self::Pointers(pointers) => {
                serializer.collect_seq(pointers.iter().map(|pointer| format!("json:{pointer}")))
            }
        }
    }
}

impl<'de> Deserialize<'de> for FingerprintConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FingerprintVisitor)
    }
}

struct FingerprintVisitor;

impl<'de> Visitor<'de> for FingerprintVisitor {
    type Value = FingerprintConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#""json", "bytes", "off", or a list of JSON pointers such as ["json:/order/id"]"#)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<FingerprintConfig, E> {
        match text {
            "json" => Ok(FingerprintConfig::Json),
            "bytes" => Ok(FingerprintConfig::Bytes),
            "off" => Ok(FingerprintConfig::Off),
            _ => Err(E::custom(
                "is no way to compare payloads; write json, bytes, off, or a list of JSON pointers such as \
                 [\"json:/order/id\"]",
            )),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FingerprintConfig, A::Error> {
        let mut pointers = Vec::new();
        while let Some(part) = seq.next_element()? {
            match part {
                KeyPart::Json(pointer) => pointers.push(pointer),
                _ => {
                    return Err(de::Error::custom(
                        "compares values of the payload only; write json:/POINTER",
                    ));
                }
            }
        }
        if pointers.is_empty() {
            return Err(de::Error::custom("compares nothing; name a JSON pointer, or write off"));
        }
        Ok(FingerprintConfig::Pointers(pointers))
    }
}

impl JsonSchema for FingerprintConfig {
    fn schema_name() -> Cow<'static, str> {
        "FingerprintConfig".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What of payloads under one key is compared, to tell a copy from another message.",
            "anyOf": [
                { "enum": ["json", "bytes", "off"] },
                { "type": "array", "items": { "type": "string", "pattern": "^json:/.*$" }, "minItems": 1 },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FingerprintConfig, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
        FingerprintConfig::deserialize(table["fingerprint"].clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_way_reads_and_is_written_as_it_was() {
        for (text, expected) in [
            (r#""json""#, FingerprintConfig::Json),
            (r#""bytes""#, FingerprintConfig::Bytes),
            (r#""off""#, FingerprintConfig::Off),
            (r#"["json:/a", "json:/b~1c"]"#, FingerprintConfig::Pointers(vec!["/a".into(), "/b~1c".into()])),
        ] {
            let fingerprint = read(&format!("fingerprint = {text}")).unwrap();
            assert_eq!(fingerprint, expected);
            assert_eq!(serde_json::to_string(&fingerprint).unwrap(), text.replace(", ", ","));
        }
    }

    #[test]
    fn what_compares_nothing_or_no_value_of_the_payload_is_refused() {
        for text in ["\"none\"", "[]", "[\"message-id\"]", "[\"json:a\"]", "[\"json:\"]", "7", "true"] {
            assert!(read(&format!("fingerprint = {text}")).is_err(), "{text}");
        }
    }
}
