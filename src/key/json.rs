//! Finds the scalar at a JSON pointer (RFC 6901), if every JSON parser finds the same one there.
//!
//! The handler reads the payload with a parser of its own. Where parsers disagree (which of two members of the same name
//! counts, whether letter case matters, where a name with a NUL character ends, what a lenient parser makes of broken JSON),
//! a key would be of one value and the effect of another. Such a payload is [`KeyError::Ambiguous`].
//!
//! One pass over the document, and one more over each value on the pointer's path. Nothing is kept of the values beside
//! the path; memory is needed for one name with escapes, and a byte for each level that is open.

use serde_core::Deserialize as _;
use serde_core::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::KeyError;
use super::format::MAX_KEY_BYTES;
use super::names;

/// True if every `~` is followed by `0` or `1`.
pub(crate) fn is_pointer(pointer: &str) -> bool {
    pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']))
}

/// True for the only notation in which a number is a key: an integer as `-?(0|[1-9][0-9]*)`, of any length. Others
/// (`7.0`, `7e0`, `-0`) mean the same number in another text, and what a parser makes of them depends on its number type.
pub(crate) fn is_plain_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain && text != "-0" && (digits.len() == 1 || !digits.starts_with('0'))
}

/// The scalar at `pointer`: its kind (one byte) followed by its text, so that `"1"` and `1` differ. Integers keep the
/// digits they came with: parsing them as floating point would make different large ids equal.
pub(crate) fn scalar_at(payload: &[u8], pointer: &str) -> Result<Vec<u8>, KeyError> {
    let text = value_at(payload, pointer)?.ok_or(KeyError::Missing)?;
    match text.as_bytes().first() {
        Some(b'"') => string(text, pointer),
        Some(b't' | b'f') => Ok([b"b", text.as_bytes()].concat()),
        Some(b'-' | b'0'..=b'9') if is_plain_integer(text) => Ok([b"n", text.as_bytes()].concat()),
        Some(b'-' | b'0'..=b'9') => Err(ambiguous(
            pointer,
            "a number is a key only as an integer without fraction, exponent or \"-0\"",
        )),
        Some(b'n') => Err(KeyError::Missing),
        _ => Err(KeyError::NotScalar),
    }
}

fn string(quoted: &str, pointer: &str) -> Result<Vec<u8>, KeyError> {
    let bytes = quoted.len().saturating_sub(2);
    // The longest escape of one byte has six.
    if bytes > 6 * MAX_KEY_BYTES {
        return Err(KeyError::TooLong { bytes });
    }
    let value: String = serde_json::from_str(quoted)
        .map_err(|_| ambiguous(pointer, "its text has half of a surrogate pair, which is no character"))?;
    if value.is_empty() {
        return Err(KeyError::Missing);
    }
    if value.contains('\0') {
        return Err(ambiguous(pointer, "its text has a NUL character, where some readers end it"));
    }
    Ok([b"s", value.as_bytes()].concat())
}

/// The text of the value at `pointer`, if there is one.
pub(crate) fn value_at<'a>(payload: &'a [u8], pointer: &str) -> Result<Option<&'a str>, KeyError> {
    let Ok(text) = std::str::from_utf8(payload) else {
        return Err(unreadable(payload, pointer, "it is not UTF-8".into()));
    };
    let mut tokens = pointer.split('/').skip(1);
    // The whole document is read, so that damage behind the pointer's target is noticed too.
    let mut here = match tokens.next() {
        Some(token) => child(text, token),
        None => serde_json::from_str::<&RawValue>(text).map(|whole| Child::Value(whole.get())),
    }
    .map_err(|error| unreadable(payload, pointer, not_json(&error)))?;
    for token in tokens {
        let Child::Value(value) = here else { break };
        here = child(value, token).map_err(|error| unreadable(payload, pointer, not_json(&error)))?;
    }
    match here {
        Child::Value(value) => Ok(Some(value)),
        Child::Absent => Ok(None),
        Child::Ambiguous(what) => Err(ambiguous(pointer, what)),
    }
}

fn ambiguous(pointer: &str, what: impl Into<String>) -> KeyError {
    KeyError::Ambiguous { source: format!("json:{pointer}"), what: what.into() }
}

/// A payload that begins as a JSON document does is meant as one: another parser may be able to read it.
fn unreadable(payload: &[u8], pointer: &str, what: String) -> KeyError {
    if begins_as_document(payload) {
        ambiguous(pointer, format!("the payload begins as JSON does and is not valid: {what}"))
    } else {
        KeyError::NotJson { what }
    }
}

/// True if the first character that is neither space, control character nor part of a byte order mark (in UTF-8 or UTF-16)
/// opens an object or array.
fn begins_as_document(payload: &[u8]) -> bool {
    let is_skipped = |byte: &&u8| matches!(byte, 0..=b' ' | 0xef | 0xbb | 0xbf | 0xfe | 0xff);
    matches!(payload.iter().find(|byte| !is_skipped(byte)), Some(b'{' | b'['))
}

fn not_json(error: &serde_json::Error) -> String {
    // serde_json's syntax errors name line and column, not the text found there.
    let category = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        _ => "wrong syntax",
    };
    format!("{category} at line {} column {}", error.line(), error.column())
}

/// The value of an object or array for a token of a pointer.
enum Child<'a> {
    Value(&'a str),
    Absent,
    Ambiguous(&'static str),
}

/// The value of a member or item of `parent`, a whole JSON text, all of which is read. Names and values beside it may hold
/// anything.
fn child<'a>(parent: &'a str, token: &str) -> serde_json::Result<Child<'a>> {
    let mut json = serde_json::Deserializer::from_str(parent);
    let opening = parent.bytes().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    let child = match opening {
        Some(b'{') => {
            let name = token.replace("~1", "/").replace("~0", "~");
            json.deserialize_map(MemberVisitor { name: &name })?
        }
        Some(b'[') => json.deserialize_seq(Item { index: index(token) })?,
        _ => {
            IgnoredAny::deserialize(&mut json)?;
            Child::Absent
        }
    };
    json.end()?;
    Ok(child)
}

fn index(token: &str) -> Option<usize> {
    let is_index = is_plain_integer(token) && !token.starts_with('-');
    token.parse().ok().filter(|_| is_index)
}

struct MemberVisitor<'n> {
    name: &'n str,
}

impl<'de> Visitor<'de> for MemberVisitor<'_> {
    type Value = Child<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Child<'de>, A::Error> {
        let (mut found, mut doubt) = (None, None);
        while let Some(quoted) = members.next_key::<&RawValue>()? {
            match likeness(quoted.get(), self.name) {
                names::Likeness::Same if found.is_none() => {
                    found = Some(members.next_value::<&RawValue>()?.get());
                    continue;
                }
                names::Likeness::Same => doubt = Some("a name on its path occurs twice in one object"),
                names::Likeness::Alike => {
                    doubt = doubt.or(Some(
                        "an object has a name that differs from one on its path in letter case or by a NUL character only",
                    ));
                }
                names::Likeness::Other => {}
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(match (doubt, found) {
            (Some(what), _) => Child::Ambiguous(what),
            (None, Some(value)) => Child::Value(value),
            (None, None) => Child::Absent,
        })
    }
}

/// Compares a member's name, in its quotes, with the wanted one.
fn likeness(quoted: &str, wanted: &str) -> names::Likeness {
    if quoted.contains('\\') {
        // As bytes: a name may have half of a surrogate pair, and is no text then.
        let name = serde_json::Deserializer::from_str(quoted).deserialize_bytes(NameVisitor(wanted));
        // What cannot be decoded may be anything.
        return name.unwrap_or(names::Likeness::Alike);
    }
    let name = quoted.get(1..quoted.len() - 1).unwrap_or_default();
    names::likeness(name.as_bytes(), wanted)
}

struct NameVisitor<'n>(&'n str);

impl Visitor<'_> for NameVisitor<'_> {
    type Value = names::Likeness;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Self::Value, E> {
        Ok(names::likeness(name, self.0))
    }
}

struct Item {
    index: Option<usize>,
}

impl<'de> Visitor<'de> for Item {
    type Value = Child<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Child<'de>, A::Error> {
        let mut at = 0_usize;
        while Some(at) != self.index {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(Child::Absent);
            }
            at += 1;
        }
        let found = items.next_element::<&RawValue>()?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found.map_or(Child::Absent, |value| Child::Value(value.get())))
    }
}
