//! The deliveries that are not settled yet.

pub(crate) mod leases;
