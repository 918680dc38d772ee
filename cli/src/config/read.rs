//! Reads parsed TOML into the configuration's types, and reports failures by path and position.
//!
//! The `toml` crate's own deserializer words its errors with the value found, which here may be a password; this one
//! differs only in the error it makes ([`ReadFault`] has no room for a value) and in the path that it keeps.

use std::ops::Range;

use serde::Deserializer;
use serde::de::value::StringDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde::{de, forward_to_deserialize_any};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{PathStep, ReadFault, What};

/// Reads a whole file's table.
pub(super) fn read<'de, T: Deserialize<'de>>(table: Spanned<DeTable<'de>>) -> Result<T, ReadFault> {
    let span = table.span();
    T::deserialize(Node { value: DeValue::Table(table.into_inner()), span })
}

/// One value with its place in the file.
struct Node<'de> {
    value: DeValue<'de>,
    span: Range<usize>,
}

impl<'de> From<Spanned<DeValue<'de>>> for Node<'de> {
    fn from(value: Spanned<DeValue<'de>>) -> Self {
        let span = value.span();
        Self { value: value.into_inner(), span }
    }
}

impl<'de> Node<'de> {
    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFault> {
        match self.value {
            DeValue::String(text) => visitor.visit_string(text.into_owned()),
            DeValue::Integer(number) => {
                let (digits, radix) = (number.as_str(), number.radix());
                if let Ok(number) = i64::from_str_radix(digits, radix) {
                    visitor.visit_i64(number)
                } else if let Ok(number) = u64::from_str_radix(digits, radix) {
                    visitor.visit_u64(number)
                } else {
                    Err(de::Error::invalid_value(Unexpected::Other("number"), &visitor))
                }
            }
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(de::Error::invalid_value(Unexpected::Other("number"), &visitor)),
            },
            DeValue::Boolean(yes) => visitor.visit_bool(yes),
            DeValue::Datetime(_) => Err(de::Error::invalid_type(Unexpected::Other("date"), &visitor)),
            DeValue::Array(items) => visitor.visit_seq(Items { items: items.into_iter().enumerate() }),
            DeValue::Table(table) => visitor.visit_map(Entries { entries: table.into_iter(), pending: None }),
        }
    }
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = ReadFault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFault> {
        let span = self.span.clone();
        self.visit(visitor).map_err(|fault| fault.at(span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadFault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadFault> {
        visitor.visit_newtype_struct(self)
    }

    /// A choice is either a text (`ordering = "key"`) or a table that holds one table (`[source.NAME]`).
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadFault> {
        let span = self.span.clone();
        match self.value {
            DeValue::String(text) => visitor.visit_enum(Name(text.into_owned())),
            DeValue::Table(table) => {
                the_one_table(table, known).and_then(|chosen| visitor.visit_enum(chosen))
            }
            _ => Err(ReadFault::new(What::Expected(format!("one of {}", known.join(", "))))),
        }
        .map_err(|fault| fault.at(span))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The single entry of a table that must hold exactly one of `known`.
fn the_one_table<'de>(table: DeTable<'de>, known: &'static [&'static str]) -> Result<Chosen<'de>, ReadFault> {
    let mut found = Vec::new();
    for name in table.keys() {
        match known.iter().find(|known| **known == name.get_ref()) {
            Some(known) => found.push((*known, name.span())),
            None => {
                let fault: ReadFault = de::Error::unknown_field(name.get_ref(), known);
                return Err(fault.within(PathStep::Key(name.get_ref().to_string())).at(name.span()));
            }
        }
    }
    found.sort_by_key(|(_, span)| span.start);
    let mut entries = table.into_iter();
    match (entries.next(), entries.next()) {
        (Some((name, value)), None) => Ok(Chosen {
            name: name.into_inner().into_owned(),
            node: Node { span: name_span(&found), ..value.into() },
        }),
        _ => {
            let fault =
                ReadFault::new(What::NotOne { found: found.iter().map(|(name, _)| *name).collect(), known });
            Err(match found.pop() {
                Some((_, last)) => fault.at(last),
                None => fault,
            })
        }
    }
}

fn name_span(found: &[(&str, Range<usize>)]) -> Range<usize> {
    found.first().map(|(_, span)| span.clone()).unwrap_or_default()
}

struct Items<'de> {
    items: std::iter::Enumerate<std::vec::IntoIter<Spanned<DeValue<'de>>>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = ReadFault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadFault> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        let span = item.span();
        seed.deserialize(Node::from(item))
            .map(Some)
            .map_err(|fault| fault.within(PathStep::Index(index)).at(span))
    }
}

struct Entries<'de, I> {
    entries: I,
    pending: Option<(String, Node<'de>)>,
}

impl<'de, I> MapAccess<'de> for Entries<'de, I>
where
    I: Iterator<Item = (Spanned<toml::de::DeString<'de>>, Spanned<DeValue<'de>>)>,
{
    type Error = ReadFault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadFault> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let span = key.span();
        let name = key.into_inner().into_owned();
        // A table's location is that of its name: the span of an implicit one would be its whole content.
        let node = match Node::from(value) {
            Node { value: DeValue::Table(table), .. } => {
                Node { value: DeValue::Table(table), span: span.clone() }
            }
            other => other,
        };
        self.pending = Some((name.clone(), node));
        let deserializer: StringDeserializer<ReadFault> = name.clone().into_deserializer();
        seed.deserialize(deserializer).map(Some).map_err(|fault| fault.within(PathStep::Key(name)).at(span))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadFault> {
        let Some((name, node)) = self.pending.take() else {
            return Err(de::Error::custom("a value was asked for before its key; report this as a defect"));
        };
        let span = node.span.clone();
        seed.deserialize(node).map_err(|fault| fault.within(PathStep::Key(name)).at(span))
    }
}

/// A choice written as text.
struct Name(String);

impl<'de> EnumAccess<'de> for Name {
    type Error = ReadFault;
    type Variant = NameOnly;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, NameOnly), ReadFault> {
        let name: StringDeserializer<ReadFault> = self.0.into_deserializer();
        seed.deserialize(name).map(|variant| (variant, NameOnly))
    }
}

struct NameOnly;

impl<'de> VariantAccess<'de> for NameOnly {
    type Error = ReadFault;

    fn unit_variant(self) -> Result<(), ReadFault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, ReadFault> {
        Err(ReadFault::new(What::Expected("a table".into())))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, ReadFault> {
        Err(ReadFault::new(What::Expected("a table".into())))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ReadFault> {
        Err(ReadFault::new(What::Expected("a table".into())))
    }
}

/// A choice written as a table: its name and what it holds.
struct Chosen<'de> {
    name: String,
    node: Node<'de>,
}

impl<'de> EnumAccess<'de> for Chosen<'de> {
    type Error = ReadFault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadFault> {
        let name: StringDeserializer<ReadFault> = self.name.clone().into_deserializer();
        seed.deserialize(name).map(|variant| (variant, self))
    }
}

impl<'de> VariantAccess<'de> for Chosen<'de> {
    type Error = ReadFault;

    fn unit_variant(self) -> Result<(), ReadFault> {
        Err(ReadFault::new(What::Expected("text in quotes".into())))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadFault> {
        seed.deserialize(self.node).map_err(|fault| fault.within(PathStep::Key(self.name)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadFault> {
        self.node.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadFault> {
        self.node.deserialize_any(visitor)
    }
}
