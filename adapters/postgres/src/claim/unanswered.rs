//! Claims that were sent and are not known to be answered: [`UnansweredClaims`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::store::OwnerToken;
use tokio::time::Instant;

/// For how long an unanswered claim is remembered: longer than any statement runs or a lost server is waited for.
const MEMORY: Duration = Duration::from_secs(3_600);

/// How many are remembered before the oldest are looked through.
const LIMIT: usize = 65_536;

/// The owner tokens of claims whose outcome is unknown. A repeated claim that meets a lock may meet its own first call:
/// that is unknown as well, and no contention.
#[derive(Clone, Default)]
pub(crate) struct UnansweredClaims(Arc<Mutex<HashMap<OwnerToken, Instant>>>);

impl UnansweredClaims {
    /// Notes that claims of `owner` are sent. True if an earlier one is unanswered.
    pub(crate) fn sent(&self, owner: OwnerToken) -> bool {
        let mut open = self.open();
        if open.len() >= LIMIT {
            open.retain(|_, sent| sent.elapsed() < MEMORY);
        }
        open.insert(owner, Instant::now()).is_some()
    }

    /// Notes that a claim of `owner` was answered.
    pub(crate) fn answered(&self, owner: &OwnerToken) {
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
    fn a_claim_is_in_doubt_until_it_is_answered() {
        let (doubts, owner) = (UnansweredClaims::default(), OwnerToken::from_bytes([7; 16]));
        assert!(!doubts.sent(owner));
        assert!(doubts.sent(owner));
        doubts.answered(&owner);
        assert!(!doubts.sent(owner));
    }
}
