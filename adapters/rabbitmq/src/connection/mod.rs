//! Opening connections to the broker: by address, with or without TLS, or with a function of the caller.

mod client;
pub(crate) mod connector;
pub(crate) mod endpoint;

pub use client::RabbitmqClient;
