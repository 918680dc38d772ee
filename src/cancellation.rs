//! Cancellation of a handler run: [`Cancellation`].

use crate::active_claim::SharedClaim;

/// Fires when the run should stop: its lease is lost or about to end unrenewed, its timeout has come, or the drain
/// deadline has passed. A run that goes on after that may overlap with another one of the same key; what it writes
/// under its fence can be refused.
#[derive(Clone, Debug)]
pub struct Cancellation(Option<SharedClaim>);

impl Cancellation {
    pub(crate) fn new(claim: Option<SharedClaim>) -> Self {
        Self(claim)
    }

    /// True once the run should stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|claim| claim.is_cancelled())
    }

    /// Waits until the run should stop; forever if it never should.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn cancelled(&self) {
        match &self.0 {
            Some(claim) => claim.cancelled().await,
            None => std::future::pending().await,
        }
    }
}
