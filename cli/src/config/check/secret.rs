//! Secrets that are given in the configuration or in a file: [`secret`].

use std::path::Path;

use onceward::own_headers::LEAST_SECRET_BYTES;

use super::rules::Checked;
use crate::config::{Config, REDACTED, Secret};

/// The secret `key` and its file; the file is read later.
pub(super) fn secret(config: &Config, key: &str, secret: Option<&Secret>, file: Option<&Path>) -> Checked {
    if secret.is_some() && file.is_some() {
        let problem = format!("is given as well as {key}");
        return Err(config.refuse(&format!("{key}_file"), problem, "keep one of the two"));
    }
    // What `config show` prints reads again.
    let is_short =
        |secret: &Secret| secret.expose() != REDACTED && secret.expose().len() < LEAST_SECRET_BYTES;
    if secret.is_some_and(is_short) {
        return Err(config.refuse(
            key,
            format!("is shorter than {LEAST_SECRET_BYTES} bytes, so that it could be guessed"),
            "make one with `openssl rand -hex 32`",
        ));
    }
    Ok(())
}
