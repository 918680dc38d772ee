//! The format of keys: its version, its limit, and the part of a hash that a key is.

/// The version of the encoding of keys. It is hashed into every key and recorded in every store, and a store
/// written with another one is refused.
pub const KEY_FORMAT: u8 = 1;

/// The longest value of one key part, in bytes. A longer one is no key: `on_missing_key` decides.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

#[inline]
pub(crate) fn first_half(hash: blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}
