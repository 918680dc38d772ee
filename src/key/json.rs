//! Finds the scalar a JSON pointer (RFC 6901) points at, without losing digits of large numbers.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::KeyError;

/// True if every `~` is followed by `0` or `1`.
pub(super) fn is_pointer(pointer: &str) -> bool {
    pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']))
}

/// The scalar at `pointer`: its kind (one byte) followed by its text, so that `"1"` and `1` differ. Numbers keep the
/// digits they came with: parsing them as floating point would make different large ids equal.
pub(super) fn scalar_at(payload: &[u8], pointer: &str) -> Result<Vec<u8>, KeyError> {
    // The whole document is validated first, so that damage behind the pointer's target is noticed too.
    let mut here: &RawValue = serde_json::from_slice(payload).map_err(not_json)?;
    for token in pointer.split('/').skip(1) {
        here = child(here, token)?.ok_or(KeyError::Missing)?;
    }
    let text = here.get();
    match text.as_bytes().first() {
        Some(b'"') => {
            let value: String = serde_json::from_str(text).map_err(not_json)?;
            if value.is_empty() { Err(KeyError::Missing) } else { Ok([b"s", value.as_bytes()].concat()) }
        }
        Some(b't' | b'f') => Ok([b"b", text.as_bytes()].concat()),
        Some(b'-' | b'0'..=b'9') => Ok([b"n", text.as_bytes()].concat()),
        _ => Err(KeyError::NotScalar),
    }
}

fn child<'a>(parent: &'a RawValue, token: &str) -> Result<Option<&'a RawValue>, KeyError> {
    let text = parent.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let name = token.replace("~1", "/").replace("~0", "~");
            let fields: HashMap<String, &RawValue> = serde_json::from_str(text).map_err(not_json)?;
            Ok(fields.get(&name).copied())
        }
        Some(b'[') => {
            let leading_zero = token.len() > 1 && token.starts_with('0');
            let Some(index) = token.parse::<usize>().ok().filter(|_| !leading_zero) else { return Ok(None) };
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            Ok(items.get(index).copied())
        }
        _ => Ok(None),
    }
}

fn not_json(error: serde_json::Error) -> KeyError {
    // serde_json's syntax errors name line and column, not the text found there.
    KeyError::NotJson {
        what: format!("{} at line {} column {}", category(&error), error.line(), error.column()),
    }
}

fn category(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        _ => "wrong syntax",
    }
}
