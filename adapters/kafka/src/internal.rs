//! Parts of this adapter that `onceward-kafka-transactions` builds on. Not a public API: it may change at any time.

pub use crate::auth::failures::AuthFailures;
pub use crate::client::log::{TracingContext, enable_warnings};
pub use crate::client::native::{TopicDescription, try_describe_topics};
pub use crate::client_config::ConsumerClientConfig;
pub use crate::error::{classify, config_error, is_authentication};
pub use crate::log_id::LogId;
pub use crate::message::to_message;
pub use crate::record::{to_headers, to_payload, to_timestamp_ms};
pub use crate::start_offsets::{
    REQUEST_TIMEOUT, ResolvedStarts, StartOffsetResolver, StoredPositions, TopicIds, set_metadata, topic_ids,
};
pub use crate::state::start::PartitionStart;
