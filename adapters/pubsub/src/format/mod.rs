//! Conversion between headers and the attributes of a message.

pub(crate) mod attributes;
pub(crate) mod facts;
pub(crate) mod outgoing;
pub(crate) mod packed_headers;
