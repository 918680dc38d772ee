//! Receiving messages.

pub(crate) mod poller;
