//! Runs a handler under a claim in the handler's own tests: [`TestRun`].

use std::time::Duration;

use tokio::time::Instant;

use crate::active_claim::{ActiveClaim, SharedClaim};
use crate::delivery::Tag;
use crate::message::Message;
use crate::store::Claimed;

/// A claimed run of a handler without a store and a pipeline: for tests of handlers.
///
/// It only lends the message key, attempt, fence and generation, and fires its cancellation. Nothing is claimed,
/// renewed or completed.
#[derive(Debug)]
pub struct TestRun(SharedClaim);

impl TestRun {
    /// Puts `message` under `claimed`; answers the message to give to the handler.
    pub fn start(message: &Message, claimed: &Claimed) -> (Self, Message) {
        let tag = Tag { epoch: 0, number: 0 };
        let claim = ActiveClaim::new(claimed, tag, Instant::now(), Duration::from_secs(3600));
        let claim = SharedClaim::new(claim);
        let message = message.claimed(claim.clone());
        (Self(claim), message)
    }

    /// Fires the message's cancellation, as a lost lease or a timeout does.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
