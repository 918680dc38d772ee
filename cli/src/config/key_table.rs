//! `[key]`: what makes two deliveries the same message.

use std::path::PathBuf;

use onceward_plugin::SourceFacts;
use onceward_plugin::value::Secret;
use schemars::JsonSchema;
use serde::Serialize;

use super::fingerprint::FingerprintConfig;
use super::key::{KeyPart, KeySource};

/// What makes two deliveries the same message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Where the idempotency key is taken from: the first that is present. A nested list is a composite, of which every
    /// part must be present. When left out: `["header:idempotency-key", "message-id", "position"]` for brokers; a file
    /// source requires it.
    #[serde(default)]
    pub from: Vec<KeySource>,
    /// The part of payloads under one key that is compared, to distinguish a copy from another message: `json` (the
    /// value of a JSON object or array, the bytes of anything else), `bytes`, `off`, or a list of JSON pointers into
    /// the payload. All workers of a scope must use the same.
    #[serde(default)]
    pub fingerprint: FingerprintConfig,
    /// The secret that seals our own dead letters and retries, so that they are distinguished from forgeries when they
    /// are redelivered: at least 16 bytes, the same for all workers of the scope. It changes no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// A file that holds it, instead of `secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// The secret before this one, for a rotation: what is sealed with it is believed, and nothing is sealed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret: Option<Secret>,
    /// A file that holds it, instead of `previous_secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret_file: Option<PathBuf>,
}

impl KeyConfig {
    /// True if there is a secret.
    pub fn has_secret(&self) -> bool {
        self.secret.is_some() || self.secret_file.is_some()
    }

    /// The sources used when none are written; none for a source without an identity to fall back on.
    pub(super) fn default_for(source: &SourceFacts) -> Option<Vec<KeySource>> {
        let parts = [KeyPart::Header("idempotency-key".to_owned()), KeyPart::MessageId, KeyPart::Position];
        source.has_identity.then(|| parts.map(KeySource::Part).into())
    }
}
