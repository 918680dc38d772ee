//! The limits of a deduplicator: [`OnceConfig`].

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::key::Fingerprinting;
use crate::pipeline::limits;
use crate::retry::RetryPolicy;

/// The limits of a [`Deduplicator`](crate::Deduplicator).
#[derive(Clone, Debug)]
pub struct OnceConfig {
    /// How long a claim lasts without renewal; it is renewed at a third of this. 100 ms to 12 h, default 30 s.
    pub lease: Duration,
    /// How long a completed key is remembered. It must cover the time in which duplicates can still arrive. At least the
    /// lease; default 7 d.
    pub ttl: Duration,
    /// After this many failed runs a key is [`Once::Exhausted`](crate::Once::Exhausted). 1 to 1,000,000; default as in
    /// [`RetryPolicy`].
    pub max_attempts: u32,
    /// How long a store call may take before its outcome is called unknown. Default 5 s.
    pub store_timeout: Duration,
    /// What [`once_for`](crate::Deduplicator::once_for) compares of payloads under one key. All consumers of a scope must
    /// use the same.
    pub fingerprint: Fingerprinting,
}

impl Default for OnceConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(7 * 24 * 3600),
            max_attempts: RetryPolicy::default().max_attempts,
            store_timeout: Duration::from_secs(5),
            fingerprint: Fingerprinting::default(),
        }
    }
}

impl OnceConfig {
    /// Checks each limit, and how they relate: the rules of
    /// [`PipelineConfig::check`](crate::PipelineConfig::check).
    ///
    /// # Errors
    /// [`Error`] of the kind `Config`, naming the values that disagree and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let attempts = usize::try_from(self.max_attempts).unwrap_or(usize::MAX);
        let fingerprint = self.fingerprint.fault().map_or(Ok(()), |fault| Err(fault.to_owned()));
        limits::range("max_attempts", attempts, 1, limits::MOST_ATTEMPTS)
            .and_then(|()| limits::lease_and_ttl(self.lease, self.ttl))
            .and_then(|()| limits::wait("store_timeout", self.store_timeout, false))
            .and(fingerprint)
            .map_err(|text| Error::new(ErrorKind::Config, "use this configuration of a deduplicator", text))
    }
}
