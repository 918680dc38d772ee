//! `[policy]`: what is done in each of the cases where there is a choice, one closed set of values for each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use onceward_plugin::choice;

/// What is done where there is a choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// A message without an idempotency key, or with one that could be read in two ways.
    pub on_missing_key: OnMissingKey,
    /// A message whose key is claimed elsewhere.
    pub on_in_progress: OnInProgress,
    /// A message whose key is completed.
    pub on_completed: OnCompleted,
    /// A message whose key is known with another payload.
    pub on_mismatch: OnMismatch,
    /// The store cannot be reached.
    pub on_store_down: OnStoreDown,
    /// A message whose attempts are used up.
    pub on_exhausted: OnExhausted,
    /// A message that failed for good and whose dead letter is too large for its destination.
    pub on_letter_refused: OnLetterRefused,
    /// Whose `onceward-` headers name the key and the generation of a message: those of our own dead letters and
    /// retries that are redelivered. When left out: `trusted` for a file source, `authenticated` for a broker with
    /// `[key] secret`, else `ignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_headers: Option<OwnHeaders>,
}

choice! {
    /// Whose `onceward-` headers are believed.
    OwnHeaders {
        /// None: a message has the key that its content gives. A dead letter that is moved back by hand is
        /// dead-lettered again if its key is dead; `onceward dlq redrive` moves it back.
        #[default]
        Ignore,
        /// Those that are sealed with `[key] secret`.
        Authenticated,
        /// All: anyone who can write to the source chooses the keys of its messages.
        Trusted,
    }
}

choice! {
    /// What becomes of a message without an idempotency key.
    OnMissingKey {
        /// It is dead-lettered; needs `[dead_letter]`.
        #[default]
        DeadLetter,
        /// The hash of its payload is its key; one with a key that could be read in two ways is dead-lettered.
        Hash,
        /// It is handled without deduplication, and counted.
        Process,
        /// It is acknowledged and dropped, and counted.
        Reject,
    }
}

choice! {
    /// What becomes of a message whose key is claimed elsewhere.
    OnInProgress {
        /// It is held, its broker's deadline kept alive, until the other run has ended.
        #[default]
        Hold,
        /// It goes back to the broker for at least as long as the other claim has left.
        Park,
    }
}

choice! {
    /// What becomes of a message whose key is completed.
    OnCompleted {
        /// It is acknowledged and counted as a duplicate.
        #[default]
        Ack,
        /// If it names an address for a reply, the handler's result is sent to it, as it was sent to the first message with
        /// its key; then it is acknowledged and counted as a duplicate. Results of up to 64 KiB are kept in the store; a reply without
        /// a result has the header `onceward-result: absent`.
        ReplayResult,
    }
}

choice! {
    /// What becomes of a message whose key is known with another payload.
    OnMismatch {
        /// It is dead-lettered; needs `[dead_letter]`.
        #[default]
        DeadLetter,
        /// It is acknowledged as a duplicate, and counted.
        Ack,
        /// It is handled without deduplication, and counted.
        Process,
    }
}

choice! {
    /// What is done while the store cannot be reached.
    OnStoreDown {
        /// Nothing is handled or acknowledged; intake pauses.
        #[default]
        Pause,
        /// Messages are handled without deduplication, loudly counted.
        Process,
    }
}

choice! {
    /// What becomes of a message whose attempts are used up.
    OnExhausted {
        /// It is dead-lettered; needs `[dead_letter]`.
        #[default]
        DeadLetter,
        /// It stays in the broker, retried at `[retry] max`, alarmed.
        Park,
    }
}

choice! {
    /// What becomes of a message that failed for good and whose dead letter is too large for its destination.
    OnLetterRefused {
        /// It stays in the broker, retried at `[retry] max`, alarmed; the messages behind it go on.
        #[default]
        Park,
        /// It is acknowledged and gone, counted and logged as an error.
        Drop,
    }
}
