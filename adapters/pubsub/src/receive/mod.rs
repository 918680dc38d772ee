//! Receiving: the stream of messages, and the state of the source.

pub(crate) mod puller;
pub(crate) mod source_watch;
