//! The records of one partition, in order: together in one transaction, or one by one where that fails. [`Lane`].

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use onceward::store::{MarkRequest, MarkedCommit, Ownership, PositionStore, Reason};
use onceward::{Delivery, Error, HandlerError, Message, Publisher, TxHandler, Verdict};
use tokio_util::sync::CancellationToken;

use super::EffectsConfig;
use super::ownership::Owners;
use crate::letter::letter;
use crate::publisher::KafkaPublisher;

/// Between two tries of a database that does not answer.
const BREATH: Duration = Duration::from_millis(200);

/// What the lanes of a run share.
pub(super) struct Lane<'a, S, H> {
    pub(super) owners: &'a Owners<S>,
    pub(super) handler: &'a H,
    pub(super) config: &'a EffectsConfig,
    pub(super) publisher: &'a KafkaPublisher,
    pub(super) shutdown: &'a CancellationToken,
}

/// How records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Effect and position are durable.
    Done,
    /// They had been when the partition was taken over, or by a commit without an answer.
    Known,
    /// In the dead-letter topic, and the position is durable.
    Dead,
    /// Nothing happened: the partition has another owner, or the run is over.
    Left,
}

impl<S: PositionStore, H: TxHandler<S>> Lane<'_, S, H> {
    /// Processes deliveries of one partition; how each ended, in order. After one that was left all others are.
    pub(super) async fn process(&self, deliveries: &[Delivery]) -> Vec<End> {
        let mut ends = vec![End::Left; deliveries.len()];
        let first = deliveries.first().and_then(|delivery| delivery.message.position());
        let Some(owner) = first.and_then(|position| self.owners.of(position)) else { return ends };
        for (end, delivery) in ends.iter_mut().zip(deliveries) {
            if owner.is_done(offset(&delivery.message)) {
                *end = End::Known;
            }
        }
        let fresh: Vec<_> = (0..deliveries.len()).filter(|index| ends[*index] == End::Left).collect();
        let messages: Vec<_> = fresh.iter().map(|index| &deliveries[*index].message).collect();
        let together = match messages.len() {
            0 | 1 => None,
            _ => self.together(&owner, &messages).await,
        };
        for (index, message) in fresh.into_iter().zip(messages) {
            ends[index] = match together {
                Some(end) => end,
                None => self.alone(&owner, message).await,
            };
            if ends[index] == End::Left {
                ends[index..].fill(End::Left);
                break;
            }
        }
        ends
    }

    /// All of them in one transaction; `None` if they have to be tried one by one.
    async fn together(&self, owner: &Ownership, messages: &[&Message]) -> Option<End> {
        let store = &self.owners.store;
        let mut open = store.begin().await.ok()?;
        for message in messages {
            if let Err(error) = self.run(&mut open, message).await {
                tracing::debug!(delivery = ?message, error = error.text(), "a batch is undone and tried one by one");
                store.rollback(open).await;
                return None;
            }
        }
        match store.commit_at(open, &self.owners.scope, &mark(owner, messages), None).await {
            Ok(MarkedCommit::Committed) => Some(End::Done),
            Ok(MarkedCommit::NotOwner) => Some(self.not_owner(owner)),
            // Whether it was committed, or one of them before, shows one by one.
            Ok(MarkedCommit::Processed | MarkedCommit::Fenced) | Err(_) => None,
        }
    }

    /// One record, until its effect is durable or it has failed for good.
    async fn alone(&self, owner: &Ownership, message: &Message) -> End {
        let (mut attempts, mut pause) = (0, Duration::ZERO);
        while !self.shutdown.is_cancelled() {
            let error = match self.attempt(owner, message).await {
                Attempt::Ended(end) => return end,
                Attempt::Store(error) => {
                    tracing::warn!(%error, "an effect is not committed yet; its partition waits for the database");
                    self.wait(BREATH).await;
                    continue;
                }
                Attempt::Failed(error) => error,
            };
            attempts += 1;
            let reason = match error.verdict() {
                Verdict::Permanent => Some(Reason::Permanent),
                _ if attempts >= self.config.retry.max_attempts => Some(Reason::AttemptsExhausted),
                _ => None,
            };
            let backoff = &self.config.retry.backoff;
            pause = backoff.delay(attempts, pause, &mut fastrand::Rng::new());
            match (reason, &self.config.dead_letters) {
                (Some(reason), Some(to)) => {
                    let letter = letter(to, message, reason, error.text(), attempts);
                    let sent = self.publisher.publish(std::slice::from_ref(&letter)).await;
                    match sent.into_iter().collect::<Result<(), Error>>() {
                        Ok(()) => return self.skip(owner, message).await,
                        Err(error) => {
                            tracing::error!(%error, "a dead letter cannot be published; its partition waits")
                        }
                    }
                    self.wait(backoff.max).await;
                }
                (Some(_), None) => {
                    tracing::error!(
                        delivery = ?message, error = error.text(),
                        "a record failed for good and holds up its partition: mend the cause, or set dead_letters"
                    );
                    self.wait(backoff.max).await;
                }
                (None, _) => {
                    tracing::debug!(delivery = ?message, attempts, error = error.text(), "a run failed and is repeated");
                    let least = if let Verdict::RetryAfter(least) = error.verdict() { least } else { pause };
                    self.wait(least.max(pause)).await;
                }
            }
        }
        End::Left
    }

    async fn attempt(&self, owner: &Ownership, message: &Message) -> Attempt {
        let store = &self.owners.store;
        let mut open = match store.begin().await {
            Ok(open) => open,
            Err(error) => return Attempt::Store(error),
        };
        if let Err(error) = self.run(&mut open, message).await {
            store.rollback(open).await;
            return Attempt::Failed(error);
        }
        self.commit(owner, open, message, End::Done).await
    }

    /// Notes the position of a record that is a dead letter, without an effect.
    async fn skip(&self, owner: &Ownership, message: &Message) -> End {
        while !self.shutdown.is_cancelled() {
            let tried = match self.owners.store.begin().await {
                Ok(open) => self.commit(owner, open, message, End::Dead).await,
                Err(error) => Attempt::Store(error),
            };
            match tried {
                Attempt::Ended(End::Known) => return End::Dead,
                Attempt::Ended(end) => return end,
                Attempt::Store(_) | Attempt::Failed(_) => self.wait(BREATH).await,
            }
        }
        End::Left
    }

    async fn commit(&self, owner: &Ownership, open: S::Conn, message: &Message, end: End) -> Attempt {
        match self.owners.store.commit_at(open, &self.owners.scope, &mark(owner, &[message]), None).await {
            Ok(MarkedCommit::Committed) => Attempt::Ended(end),
            Ok(MarkedCommit::Processed) => Attempt::Ended(End::Known),
            Ok(MarkedCommit::NotOwner | MarkedCommit::Fenced) => Attempt::Ended(self.not_owner(owner)),
            // What the effect left to be checked by the commit is the effect's failure.
            Err(error) if !error.is_retryable() => Attempt::Failed(error.into()),
            Err(error) => Attempt::Store(error),
        }
    }

    fn not_owner(&self, owner: &Ownership) -> End {
        let (partition, epoch) = (owner.partition.partition, owner.epoch);
        tracing::warn!(
            partition,
            epoch,
            "a partition has another owner in the database; nothing more is committed for it"
        );
        End::Left
    }

    /// Runs the handler in an open transaction: caught when it panics, dropped when its time is up.
    async fn run(&self, open: &mut S::Conn, message: &Message) -> Result<(), HandlerError> {
        if let Some(defect) = message.defect() {
            return Err(HandlerError::permanent(defect.to_string()));
        }
        let tx = self.owners.store.lend(open);
        // All of the user's code runs inside: the call as well as the future.
        let run = async { self.handler.handle(message.clone(), tx).await };
        let limit = self.config.handler_timeout;
        match tokio::time::timeout(limit, AssertUnwindSafe(run).catch_unwind()).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(HandlerError::retry("the handler panicked")),
            Err(_) => Err(HandlerError::retry(format!(
                "the handler did not return within {limit:?} and was dropped"
            ))),
        }
    }

    async fn wait(&self, limit: Duration) {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(limit) => {}
        }
    }
}

enum Attempt {
    Ended(End),
    /// The handler's failure, or one that its transaction kept for the commit.
    Failed(HandlerError),
    /// The database's.
    Store(Error),
}

/// Everything below the first of these is processed: a partition's records are taken one batch after the other.
fn mark(owner: &Ownership, messages: &[&Message]) -> MarkRequest {
    let offsets: Vec<_> = messages.iter().map(|message| offset(message)).collect();
    let floor = offsets.first().copied().unwrap_or_default();
    MarkRequest { partition: owner.partition.clone(), epoch: owner.epoch, offsets, floor }
}

fn offset(message: &Message) -> u64 {
    message.position().map_or(0, |position| position.offset)
}
