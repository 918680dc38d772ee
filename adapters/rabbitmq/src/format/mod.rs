//! Conversion between AMQP properties and headers and those of onceward.

pub(crate) mod header_values;
pub(crate) mod native;
pub(crate) mod property_headers;
