//! Keys whose rows another transaction was found to hold: [`ContendedKeys`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::Key;
use tokio::time::Instant;

/// For how long a key that was found held is expected to be held still.
const MEMORY: Duration = Duration::from_secs(2);

/// How many keys are remembered at most.
const LIMIT: usize = 4_096;

/// Remembers which keys were found held a moment ago. They are claimed apart from others, without waiting for locks again:
/// otherwise each try would cost all keys of its batch the wait for a lock.
#[derive(Default)]
pub(crate) struct ContendedKeys(Mutex<HashMap<Key, Instant>>);

impl ContendedKeys {
    /// Notes that `key` is held.
    pub(crate) fn note(&self, key: Key) {
        let mut known = self.known();
        if known.len() >= LIMIT {
            known.retain(|_, seen| seen.elapsed() < MEMORY);
            if known.len() >= LIMIT {
                known.clear();
            }
        }
        known.insert(key, Instant::now());
    }

    /// Whether `key` was held a moment ago.
    pub(crate) fn recently(&self, key: &Key) -> bool {
        let known = self.known();
        !known.is_empty() && known.get(key).is_some_and(|seen| seen.elapsed() < MEMORY)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_remembered_for_a_while_and_their_number_is_bounded() {
        let held = ContendedKeys::default();
        let key = |n: u64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            Key::from_bytes(bytes)
        };
        held.note(key(0));
        assert!(held.recently(&key(0)) && !held.recently(&key(1)));
        tokio::time::advance(MEMORY).await;
        assert!(!held.recently(&key(0)));
        for n in 0..10 * LIMIT as u64 {
            held.note(key(n));
            assert!(held.known().len() <= LIMIT);
        }
    }
}
