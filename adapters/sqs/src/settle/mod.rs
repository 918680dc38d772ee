//! Settlement of deliveries.

pub(crate) mod receipt_handles;
