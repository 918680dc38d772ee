//! Default values, for serde's `default = "…"`.

use crate::value::HumanDuration;

/// Seconds.
pub const fn secs<const N: u64>() -> HumanDuration {
    HumanDuration::from_secs(N)
}

/// A whole number.
pub const fn count<const N: u32>() -> u32 {
    N
}
