//! librdkafka's own properties, passed through. Values are printed only for names that hold no secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use super::secret::REDACTED;

/// Names whose value may be shown, besides those that end in a unit.
const SHOWN: [&str; 12] = [
    "auto.offset.reset",
    "client.id",
    "client.rack",
    "compression.type",
    // The check takes one value only of these.
    "enable.partition.eof",
    "group.protocol",
    "isolation.level",
    "partition.assignment.strategy",
    "sasl.mechanism",
    "sasl.mechanisms",
    "security.protocol",
    "statistics.interval.ms",
];
const SHOWN_ENDINGS: [&str; 5] = [".ms", ".bytes", ".kbytes", ".messages", ".size"];

/// Properties of librdkafka by their dotted names. `session.timeout.ms = 45000` needs no quotes around its name.
#[derive(Clone, Default, PartialEq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Every name with its value, secrets included, for the one place that hands them to the client.
    pub fn expose(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of one property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// True where no property is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn redacted(&self) -> impl Iterator<Item = (&str, &str)> {
        self.expose().map(|(name, value)| {
            let shown = SHOWN.contains(&name) || SHOWN_ENDINGS.iter().any(|ending| name.ends_with(ending));
            (name, if shown { value } else { REDACTED })
        })
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.redacted()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.redacted())
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut properties = BTreeMap::new();
        match Value::deserialize(deserializer)? {
            Value::Table(table) => gather("", table, &mut properties),
            Value::Text(_) => {
                return Err(D::Error::custom("is not a table; write [….properties] and one property a line"));
            }
        }
        Ok(Self(properties))
    }
}

/// Without quotes a dotted name is nested tables; here it is one name again.
fn gather(prefix: &str, table: BTreeMap<String, Value>, into: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Text(text) => drop(into.insert(name, text)),
            Value::Table(table) => gather(&name, table, into),
        }
    }
}

enum Value {
    Text(String),
    Table(BTreeMap<String, Value>),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a whole number, or true or false")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Text(number.to_string()))
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Value, E> {
        Ok(Value::Text(yes.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut table = BTreeMap::new();
        while let Some((name, value)) = map.next_entry()? {
            table.insert(name, value);
        }
        Ok(Value::Table(table))
    }
}

impl JsonSchema for Properties {
    fn schema_name() -> Cow<'static, str> {
        "Properties".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "Properties of librdkafka by their names; dotted names need no quotes.",
            "additionalProperties": { "type": ["string", "integer", "boolean", "object"] },
        })
    }
}
