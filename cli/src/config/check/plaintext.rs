//! Refuses to show credentials to others, unless that is written.

use super::Checked;
use crate::config::{Config, plaintext};

pub(super) fn check(config: &Config) -> Checked {
    match plaintext::exposures(config).into_iter().find(|exposure| !exposure.allowed) {
        Some(exposure) => {
            let fix = format!(
                "{}, or allow_plaintext = true in [{}] on a network where nobody else can be",
                exposure.fix, exposure.table
            );
            Err(config.refuse(&exposure.key, exposure.problem, fix))
        }
        None => Ok(()),
    }
}
