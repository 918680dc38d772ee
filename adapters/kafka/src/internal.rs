//! Parts of this adapter that `onceward-kafka-transactions` is built on. No public API: it changes without notice.

pub use crate::auth::failures::Refused;
pub use crate::client::log::{Traced, level};
pub use crate::client::native::describe_each;
pub use crate::config::{Settled, settled};
pub use crate::log_id::Stamp;
pub use crate::message::from as to_message;
pub use crate::start_offsets::{ANSWER, Beginner, Begun, Ids, Starts, ids, stamp};
pub use crate::state::assignment::Begin;

/// Errors of the client.
pub mod error {
    pub use crate::error::{config, is_login, kafka};
}

/// The parts of a record to be sent.
pub mod record {
    pub use crate::record::{headers, payload, timestamp_ms};
}
