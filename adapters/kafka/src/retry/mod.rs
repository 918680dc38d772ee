//! Retry topics: delayed redelivery by copies of records.

pub(crate) mod forwarder;
