//! The connection to Pub/Sub: endpoint, credentials, names, and whether the server is reachable.

pub(crate) mod endpoint;
pub(crate) mod names;
pub(crate) mod reachability;
