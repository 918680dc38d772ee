//! The bytes that are hashed into a key: its parts, each with its length in front.

use crate::key::{KeyError, MAX_KEY_BYTES};

pub(super) fn tagged(into: &mut Vec<u8>, kind: &[u8], name: &[u8]) {
    for text in [kind, name] {
        into.extend_from_slice(&(text.len() as u64).to_le_bytes());
        into.extend_from_slice(text);
    }
}

pub(super) fn part(into: &mut Vec<u8>, value: &[u8]) -> Result<(), KeyError> {
    if value.is_empty() {
        return Err(KeyError::Missing);
    }
    within_limit(value.len())?;
    push(into, value);
    Ok(())
}

/// The kind before a JSON value's text does not count towards its length.
pub(super) fn json_part(into: &mut Vec<u8>, value: &[u8]) -> Result<(), KeyError> {
    within_limit(value.len() - 1)?;
    push(into, value);
    Ok(())
}

fn within_limit(bytes: usize) -> Result<(), KeyError> {
    if bytes > MAX_KEY_BYTES { Err(KeyError::TooLong { bytes }) } else { Ok(()) }
}

fn push(into: &mut Vec<u8>, value: &[u8]) {
    into.extend_from_slice(&(value.len() as u64).to_le_bytes());
    into.extend_from_slice(value);
}
