//! Identifies a line that was read before, by its offsets and a digest: [`LineMark`].

/// Bytes kept of a line that exceeds the size limit, and the bytes of a line that its [`Digest`] covers.
pub(crate) const KEPT_BYTES: usize = 1024;

/// The offsets of a line and its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineMark {
    /// The offset of the first byte.
    pub start: u64,
    /// The offset after the line ending.
    pub end: u64,
    /// The digest of the line.
    pub digest: Digest,
}

/// 256 bits of BLAKE3 over the size of a line (ending included) and its first [`KEPT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a line of `bytes` that begins with `head`.
    pub(crate) fn of(bytes: u64, head: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes.to_le_bytes());
        hasher.update(&head[..head.len().min(KEPT_BYTES)]);
        Self(*hasher.finalize().as_bytes())
    }
}
