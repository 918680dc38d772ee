//! Claims that were sent without a known reply: [`UnansweredClaims`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::store::OwnerToken;
use tokio::time::Instant;

/// How long an unanswered claim is remembered: longer than any statement runs or a lost server is waited for.
const MEMORY: Duration = Duration::from_secs(3_600);

/// Claims remembered before expired ones are removed.
const LIMIT: usize = 65_536;

/// The owner tokens of claims whose outcome is unknown. A repeated claim that meets a lock may meet its own first call: then
/// its outcome is unknown too, and the key is not contended.
#[derive(Clone, Default)]
pub(crate) struct UnansweredClaims(Arc<Mutex<HashMap<OwnerToken, Instant>>>);

impl UnansweredClaims {
    /// Notes that a claim of `owner` is sent. True if an earlier one is unanswered.
    pub(crate) fn note_sent(&self, owner: OwnerToken) -> bool {
        let mut open = self.open();
        if open.len() >= LIMIT {
            open.retain(|_, sent| sent.elapsed() < MEMORY);
        }
        open.insert(owner, Instant::now()).is_some()
    }

    /// Notes that a claim of `owner` was answered.
    pub(crate) fn note_answered(&self, owner: &OwnerToken) {
        self.open().remove(owner);
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<OwnerToken, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_unanswered_until_its_reply_is_noted() {
        let (unanswered, owner) = (UnansweredClaims::default(), OwnerToken::from_bytes([7; 16]));
        assert!(!unanswered.note_sent(owner));
        assert!(unanswered.note_sent(owner));
        unanswered.note_answered(&owner);
        assert!(!unanswered.note_sent(owner));
    }
}
