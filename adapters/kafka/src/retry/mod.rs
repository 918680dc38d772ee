//! Retry topics: delayed redelivery by copies of records.

pub(crate) mod copy;
pub(crate) mod forwarder;
#[cfg(test)]
mod tests;
pub(crate) mod topic;
