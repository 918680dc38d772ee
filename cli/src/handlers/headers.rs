//! How much of a message's headers is passed on where the receiver has limits: [`Budget`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Room for headers. What does not fit is left out whole and counted: a cut value would be a wrong value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// How many more headers.
    pub(super) count: usize,
    /// The largest name, in bytes.
    pub(super) name: usize,
    /// The largest value as it is passed on, in bytes.
    pub(super) value: usize,
    /// The room left for names and values together, in bytes.
    pub(super) total: usize,
    /// How many were left out.
    pub(super) skipped: usize,
}

impl Budget {
    /// Takes room for a header; false if there is none.
    pub(super) fn take(&mut self, name: &str, value: usize) -> bool {
        let size = name.len() + value;
        if self.count == 0 || name.len() > self.name || value > self.value || size > self.total {
            return false;
        }
        self.count -= 1;
        self.total -= size;
        true
    }

    /// Counts a header that is left out.
    pub(super) fn skip(&mut self) {
        self.skipped += 1;
    }

    /// Whether a value of so many bytes could fit, asked before it is encoded.
    pub(super) fn could_hold(&self, value: usize) -> bool {
        value <= self.value
    }
}

/// `bytes` in standard Base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
