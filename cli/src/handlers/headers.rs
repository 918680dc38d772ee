//! Limits on the message headers that are passed to a handler: [`HeaderBudget`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The remaining room for headers. A header that does not fit is omitted and counted, never truncated.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderBudget {
    /// The remaining number of headers.
    pub(super) count: usize,
    /// The longest name, in bytes.
    pub(super) name: usize,
    /// The longest value as passed, in bytes.
    pub(super) value: usize,
    /// The remaining bytes of names and values together.
    pub(super) total: usize,
    /// The number of omitted headers.
    pub(super) skipped: usize,
}

impl HeaderBudget {
    /// Reserves room for a header; false if no room is left.
    pub(super) fn take(&mut self, name: &str, value: usize) -> bool {
        let size = name.len() + value;
        if self.count == 0 || name.len() > self.name || value > self.value || size > self.total {
            return false;
        }
        self.count -= 1;
        self.total -= size;
        true
    }

    /// Counts an omitted header.
    pub(super) fn skip(&mut self) {
        self.skipped += 1;
    }

    /// True if a value of this many bytes could fit, to be asked before it is encoded.
    pub(super) fn could_hold(&self, value: usize) -> bool {
        value <= self.value
    }
}

/// `bytes` in standard Base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
