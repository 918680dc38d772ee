//! `[key] secret` and `[policy] own_headers`: what our own headers are sealed with, and whose are believed.

use super::rules::Checked;
use super::secret::secret;
use crate::config::{Config, OwnHeaders};

pub(super) fn check(config: &Config) -> Checked {
    let key = &config.key;
    secret(config, "key.secret", key.secret.as_ref(), key.secret_file.as_deref())?;
    let previous = key.previous_secret.as_ref();
    secret(config, "key.previous_secret", previous, key.previous_secret_file.as_deref())?;
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
