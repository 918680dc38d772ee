//! `[key] secret` and `[policy] own_headers`: what our own headers are sealed with, and whose are believed.

use std::path::Path;

use onceward::own_headers::LEAST_SECRET_BYTES;

use super::rules::Checked;
use crate::config::{Config, OwnHeaders, REDACTED, Secret};

pub(super) fn check(config: &Config) -> Checked {
    let key = &config.key;
    one(config, "secret", key.secret.as_ref(), key.secret_file.as_deref())?;
    one(config, "previous_secret", key.previous_secret.as_ref(), key.previous_secret_file.as_deref())?;
    if !key.has_secret() {
        for (name, is_given) in [
            ("previous_secret", key.previous_secret.is_some()),
            ("previous_secret_file", key.previous_secret_file.is_some()),
        ] {
            if is_given {
                let problem = "is given without key.secret, so that nothing is sealed";
                return Err(config.refuse(&format!("key.{name}"), problem, "add secret or secret_file"));
            }
        }
        if config.own_headers() == OwnHeaders::Authenticated {
            return Err(config.refuse(
                "policy.own_headers",
                "believes only what is sealed, and there is no key.secret to seal it with",
                r#"add secret_file to [key], or write "ignore""#,
            ));
        }
    }
    Ok(())
}

/// A secret and its file; the file is read later.
fn one(config: &Config, name: &str, secret: Option<&Secret>, file: Option<&Path>) -> Checked {
    if secret.is_some() && file.is_some() {
        let problem = format!("is given as well as key.{name}");
        return Err(config.refuse(&format!("key.{name}_file"), problem, "keep one of the two"));
    }
    // What `config show` prints reads again.
    let is_short =
        |secret: &Secret| secret.expose() != REDACTED && secret.expose().len() < LEAST_SECRET_BYTES;
    if secret.is_some_and(is_short) {
        return Err(config.refuse(
            &format!("key.{name}"),
            format!("is shorter than {LEAST_SECRET_BYTES} bytes, so that it could be guessed"),
            "make one with `openssl rand -hex 32`",
        ));
    }
    Ok(())
}
