//! Authentication: where a login may be sent, how passwords are refreshed, and when a failure is final.

pub(crate) mod failures;
pub(crate) mod password;
pub(crate) mod plaintext;
