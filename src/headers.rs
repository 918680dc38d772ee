//! Names of the headers that Onceward writes into dead letters and retries.

/// All headers that Onceward writes start with this.
pub const HEADER_PREFIX: &str = "onceward-";
/// The scope the letter belongs to.
pub const HEADER_SCOPE: &str = "onceward-scope";
/// The derived key, 32 hexadecimal digits.
pub const HEADER_KEY: &str = "onceward-key";
/// The generation of the key.
pub const HEADER_GENERATION: &str = "onceward-generation";
/// Why the message failed for good; see [`Reason`](crate::store::Reason). Its presence makes a message a dead letter.
pub const HEADER_REASON: &str = "onceward-reason";
/// The last error, at most 1,024 bytes.
pub const HEADER_ERROR: &str = "onceward-error";
/// Attempts used.
pub const HEADER_ATTEMPTS: &str = "onceward-attempts";
/// Claims that lapsed.
pub const HEADER_LOST: &str = "onceward-lost";
/// The queue, topic or file the message came from.
pub const HEADER_ORIGIN: &str = "onceward-origin";
/// Where it stood there: incarnation, partition and offset.
pub const HEADER_POSITION: &str = "onceward-position";
/// Our own id of a letter or retry, where the message id is the producer's.
pub const HEADER_ID: &str = "onceward-id";
/// The message id it came with.
pub const HEADER_MESSAGE_ID: &str = "onceward-message-id";
/// When the key was first claimed, in milliseconds since 1970.
pub const HEADER_FIRST_AT: &str = "onceward-first-at-ms";
/// When the letter was made, in milliseconds since 1970.
pub const HEADER_LAST_AT: &str = "onceward-last-at-ms";
/// When the message was made, in milliseconds since 1970, where the letter's own time may be another.
pub const HEADER_TIMESTAMP: &str = "onceward-timestamp-ms";
/// The message authentication code over the headers above and the payload; see [`own_headers`](crate::own_headers).
pub const HEADER_MAC: &str = "onceward-mac";
