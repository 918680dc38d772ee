//! Credentials: where they may go, how they are refreshed, and when a refusal is final.

pub(crate) mod failures;
pub(crate) mod password;
pub(crate) mod plaintext;
