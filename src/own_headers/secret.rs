//! The secrets that seal headers: [`OwnSecrets`].

use std::fmt;

use crate::error::{Error, ErrorKind};

/// The fewest bytes of a secret.
pub const LEAST_SECRET_BYTES: usize = 16;

/// One secret that seals and is believed, and for a rotation one before it that is only believed.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnSecrets {
    pub(super) current: MacKey,
    previous: Option<MacKey>,
}

/// A secret in the form that MACs are made with.
#[derive(Clone)]
pub(super) struct MacKey {
    /// Identifies the secret without revealing any of it: eight hexadecimal digits.
    pub(super) id: String,
    pub(super) key: [u8; 32],
}

impl PartialEq for MacKey {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.key) == blake3::Hash::from_bytes(other.key)
    }
}

impl Eq for MacKey {}

impl MacKey {
    fn new(secret: &[u8]) -> Result<Self, Error> {
        if secret.len() < LEAST_SECRET_BYTES {
            let what = "the secret is shorter than 16 bytes, so that it could be guessed; make one with \
                        `openssl rand -hex 32`";
            return Err(Error::new(ErrorKind::Config, "seal our own headers", what));
        }
        let id = blake3::derive_key("onceward 2026 own headers key id", secret);
        Ok(Self {
            id: id[..4].iter().map(|byte| format!("{byte:02x}")).collect(),
            key: blake3::derive_key("onceward 2026 own headers mac", secret),
        })
    }
}

impl OwnSecrets {
    /// From a secret of at least [`LEAST_SECRET_BYTES`], the same in all workers of a scope. Its bytes are not kept.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it is shorter.
    pub fn new(secret: &[u8]) -> Result<Self, Error> {
        Ok(Self { current: MacKey::new(secret)?, previous: None })
    }

    /// Also believes what was sealed with `secret`, until letters and retries of that time are gone.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_previous(mut self, secret: &[u8]) -> Result<Self, Error> {
        self.previous = Some(MacKey::new(secret)?);
        Ok(self)
    }

    /// The key with this id.
    pub(super) fn find(&self, id: &str) -> Option<&MacKey> {
        [Some(&self.current), self.previous.as_ref()].into_iter().flatten().find(|key| key.id == id)
    }
}

impl fmt::Debug for OwnSecrets {
    /// Nothing of the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnSecrets").field("previous", &self.previous.is_some()).finish_non_exhaustive()
    }
}
