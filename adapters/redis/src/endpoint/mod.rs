//! Addresses of Redis servers and the login that they are sent.

pub(crate) mod address;
pub(crate) mod plaintext;
