//! Conversion between SQS messages, their attributes and envelopes, and those of onceward.

pub(crate) mod attributes;
pub(crate) mod fifo;
pub(crate) mod native;
pub(crate) mod packed_headers;
pub(crate) mod sns;
