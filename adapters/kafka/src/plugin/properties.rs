//! Properties of librdkafka, passed through. Values are printed only for names that hold no secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use onceward_plugin::schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use onceward_plugin::serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use onceward_plugin::serde::{Serialize, Serializer};
use onceward_plugin::value::REDACTED;
use onceward_plugin::{Checked, Context};

use crate::client_config::PROPERTY_RULES;

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

/// Properties that are not for passing through, with what to use instead.
const REFUSED_PROPERTIES: [(&str, &str); 7] = [
    ("auto.commit.enable", AUTOMATIC),
    ("enable.auto.commit", AUTOMATIC),
    ("enable.auto.offset.store", AUTOMATIC),
    ("bootstrap.servers", "remove it and write the brokers in `brokers`"),
    ("metadata.broker.list", "remove it and write the brokers in `brokers`"),
    ("group.id", "remove it and write the consumer group in `group`"),
    ("transactional.id", "remove it, since it is derived from the scope"),
];
const NO_CODE: &str =
    "remove it: code for a client is linked or preloaded when the program is started, not named here";
const AUTOMATIC: &str = "remove it, since offsets are committed only after an effect is complete";

/// Properties that name a file with a private key.
pub(super) const KEY_FILES: [&str; 3] = ["ssl.key.location", "ssl.keystore.location", "sasl.kerberos.keytab"];

/// A property's name as librdkafka would take it at its most lenient.
pub(super) fn normalised(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    name.strip_prefix("topic.").map(str::to_owned).unwrap_or(name)
}

/// True for properties that load libraries or run commands, and for those that only a C program could set.
fn runs_code(name: &str) -> bool {
    // However it is written: with dots, underscores or dashes.
    let name = name.replace(['_', '-'], ".");
    let is_about_code = ["plugin.", "ssl.engine", "ssl.provider", "sasl.kerberos.kinit"];
    is_about_code.iter().any(|start| name.starts_with(start))
        || name.ends_with(".cb")
        || matches!(
            &*name,
            "opaque"
                | "interceptors"
                | "default.topic.conf"
                | "msg.order.cmp"
                | "ssl.key"
                | "ssl.certificate"
                | "ssl.ca"
        )
}

fn is_plain_in_a_shell(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._/@-:".contains(character)
}

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

    /// All but the property `name`, however it is written.
    pub(super) fn without(&self, name: &str) -> Self {
        let kept = self.0.iter().filter(|(own, _)| normalised(own) != name);
        Self(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// True where no property is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of the property `name` as the file spells it: quoted, or as nested tables.
    pub(super) fn key(context: &Context<'_>, name: &str) -> String {
        let nested = format!("properties.{name}");
        if context.is_written(&nested) { nested } else { format!("properties.{name:?}") }
    }

    /// Rejects properties that contradict the guarantees, that have an option of their own, and that make librdkafka load or run
    /// code: the right to write or check a configuration must not include the right to run programs.
    pub(super) fn check(&self, context: &Context<'_>) -> Checked {
        for (name, value) in self.expose() {
            let plain = normalised(name);
            let key = || Self::key(context, name);
            if let Some((_, fix)) = REFUSED_PROPERTIES.iter().find(|(refused, _)| *refused == plain) {
                return Err(context.problem(&key(), "is not for passing through", *fix));
            }
            if let Some(rule) = PROPERTY_RULES.iter().find(|rule| rule.is_broken_by(&plain, value)) {
                let fix = match rule.required {
                    None => "remove it".to_owned(),
                    Some(required) => format!("set it to {required}, or remove it"),
                };
                return Err(context.problem(&key(), rule.problem, fix));
            }
            if runs_code(&plain) {
                let problem = "loads or runs code, or takes an address in memory";
                return Err(context.problem(&key(), problem, NO_CODE));
            }
            // librdkafka puts these into the command line of `kinit`, which a shell runs.
            if plain.starts_with("sasl.kerberos.") && !value.chars().all(is_plain_in_a_shell) {
                return Err(context.problem(
                    &key(),
                    "holds a character that a shell could take for more than a name",
                    "write letters, digits and `. _ / @ - :` only",
                ));
            }
        }
        Ok(())
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
        match PropertyValue::deserialize(deserializer)? {
            PropertyValue::Table(table) => gather("", table, &mut properties),
            PropertyValue::Text(_) => {
                return Err(D::Error::custom("is not a table; write [….properties] and one property a line"));
            }
        }
        Ok(Self(properties))
    }
}

/// Without quotes a dotted name is nested tables; here it is one name again.
fn gather(prefix: &str, table: BTreeMap<String, PropertyValue>, into: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            PropertyValue::Text(text) => drop(into.insert(name, text)),
            PropertyValue::Table(table) => gather(&name, table, into),
        }
    }
}

enum PropertyValue {
    Text(String),
    Table(BTreeMap<String, PropertyValue>),
}

impl<'de> Deserialize<'de> for PropertyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PropertyVisitor)
    }
}

struct PropertyVisitor;

impl<'de> Visitor<'de> for PropertyVisitor {
    type Value = PropertyValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a whole number, or true or false")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PropertyValue, E> {
        Ok(PropertyValue::Text(text.to_owned()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<PropertyValue, E> {
        Ok(PropertyValue::Text(number.to_string()))
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<PropertyValue, E> {
        Ok(PropertyValue::Text(yes.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PropertyValue, A::Error> {
        let mut table = BTreeMap::new();
        while let Some((name, value)) = map.next_entry()? {
            table.insert(name, value);
        }
        Ok(PropertyValue::Table(table))
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
