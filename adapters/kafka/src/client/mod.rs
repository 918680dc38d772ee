//! The librdkafka client: bindings, contexts, logs, connectivity and the diagnosis of failed connections.

pub(crate) mod blocking;
pub(crate) mod connectivity;
pub(crate) mod context;
pub(crate) mod diagnosis;
pub(crate) mod log;
pub(crate) mod native;
