//! Acks messages and returns them: [`PubsubAcker`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use google_cloud_pubsub::subscriber::handler::Handler;
use onceward::Error;
use onceward::adapter::{Acker, Settled, Settlement, Tag};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error;
use crate::settle::leases::{BegunAck, Leases};

/// The acker of a [`PubsubConsumer`](crate::PubsubConsumer).
///
/// With exactly-once delivery, `Done` means that Pub/Sub has confirmed the ack. Without it Pub/Sub confirms nothing:
/// `Done` means that the ack will be sent, and a lost one has the message redelivered.
#[derive(Clone)]
pub(crate) struct PubsubAcker {
    pub(crate) subscription: Arc<str>,
    pub(crate) leases: Arc<Leases>,
    /// How long a confirmation may take. It goes on afterwards, and a repeated settlement has its outcome.
    pub(crate) call_timeout: Duration,
    /// How long a rejected message is held before it is returned, so that it is not redelivered at once.
    pub(crate) reject_delay: Duration,
    pub(crate) stopping: CancellationToken,
}

impl PubsubAcker {
    /// Returns a message, after `delay` or when the consumer is closed; its lease is extended until then.
    fn give_back(&self, number: u64, delay: Duration) -> Settled {
        let Some(handler) = self.leases.take(number) else { return Settled::TooLate };
        if delay.is_zero() {
            handler.nack();
        } else {
            tokio::spawn(hold(handler, delay, self.stopping.clone()));
        }
        Settled::Done
    }

    fn begin(&self, number: u64, settlement: Settlement) -> BegunAck {
        match settlement {
            Settlement::Ack => self.leases.ack(number, &self.subscription),
            Settlement::Retry { after } => BegunAck::Answered(self.give_back(number, after)),
            // Pub/Sub rejects messages through its dead-letter policy, which counts deliveries: the message is
            // redelivered until the policy moves it away, and without one until its retention ends.
            Settlement::Reject => BegunAck::Answered(self.give_back(number, self.reject_delay)),
            _ => BegunAck::Answered(self.give_back(number, Duration::ZERO)),
        }
    }
}

async fn hold(handler: Handler, delay: Duration, stopping: CancellationToken) {
    stopping.run_until_cancelled(tokio::time::sleep(delay)).await;
    handler.nack();
}

#[async_trait]
impl Acker for PubsubAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let deadline = Instant::now() + self.call_timeout;
        // All begin before one is awaited: the client library sends them together.
        let begun: Vec<_> =
            batch.iter().map(|(tag, settlement)| (tag.number, self.begin(tag.number, *settlement))).collect();
        let answers = begun.into_iter().map(async |(number, begun)| match begun {
            BegunAck::Answered(settled) => Ok(settled),
            BegunAck::Pending(ack) => match tokio::time::timeout_at(deadline, ack).await {
                Ok(answer) => {
                    self.leases.end(number);
                    answer
                }
                Err(_) => Err(error::timeout(format!("ack messages of {}", self.subscription))),
            },
        });
        join_all(answers).await
    }
}
