//! Comparison of names as all readers of a message would make it: [`likeness`].

/// How a name compares to a wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// Byte for byte the same.
    Same,
    /// Another name, which some readers take for the wanted one.
    Alike,
    /// Another name to all.
    Other,
}

/// Compares a member's name, as bytes, with the name wanted. Some parsers ignore letter case (Go's `encoding/json`, .NET's
/// for the web), end a name at a NUL character (SQLite before 3.45, those that keep C strings) or pass over half of a
/// surrogate pair.
pub(crate) fn likeness(name: &[u8], wanted: &str) -> Likeness {
    if name == wanted.as_bytes() {
        return Likeness::Same;
    }
    let (name, wanted) = (until_nul(name), until_nul(wanted.as_bytes()));
    let alike = if name.is_ascii() && wanted.is_ascii() {
        name.eq_ignore_ascii_case(wanted)
    } else {
        folded(name).eq(folded(wanted))
    };
    if alike { Likeness::Alike } else { Likeness::Other }
}

fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The characters of `name` without letter case, those outside ASCII included; what is no character is passed over.
fn folded(name: &[u8]) -> impl Iterator<Item = char> {
    let characters = name.utf8_chunks().flat_map(|chunk| chunk.valid().chars());
    // Upper case first: some letters (ſ, the Kelvin sign) share their capital with another one.
    characters.flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

/// True if two header names become one where they are passed on: as environment variables, which have capitals and `_`
/// only, or over HTTP, which ignores letter case.
pub(crate) fn same_header(one: &str, other: &str) -> bool {
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' };
    if one.is_ascii() && other.is_ascii() {
        return one.len() == other.len() && one.bytes().map(plain).eq(other.bytes().map(plain));
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    one.chars().map(plain).eq(other.chars().map(plain))
}
