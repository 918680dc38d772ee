//! Runs a handler under a claim in the handler's own tests: [`TestRun`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::active_claim::ActiveClaim;
use crate::delivery::Tag;
use crate::message::Message;
use crate::store::Claimed;

/// A claimed run of a handler without a store and a pipeline: for tests of handlers.
///
/// It only lends the message key, attempt, fence and generation, and fires its cancellation. Nothing is claimed,
/// renewed or completed.
#[derive(Debug)]
pub struct TestRun(Arc<ActiveClaim>);

impl TestRun {
    /// Puts `message` under `claimed`; answers the message to give to the handler.
    pub fn start(message: &Message, claimed: &Claimed) -> (Self, Message) {
        let now = Instant::now();
        let claim = Arc::new(ActiveClaim::new(
            claimed,
            Tag { epoch: 0, number: 0 },
            now,
            now + Duration::from_secs(3600),
        ));
        let message = message.claimed(Arc::clone(&claim));
        (Self(claim), message)
    }

    /// Fires the message's cancellation, as a lost lease or a timeout does.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
