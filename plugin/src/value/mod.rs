//! Types of configuration values: durations, sizes, addresses and secrets.
//!
//! Each reads what people write, prints it back in the same form, and never prints a secret.

mod address;
mod bytes;
mod credentials;
mod duration;
mod secret;

pub use address::{Address, HookUrl};
pub use bytes::ByteCount;
pub use credentials::{Credentials, Login};
pub use duration::{HumanDuration, NotADuration};
pub use secret::{REDACTED, Secret};
