//! The records of one partition, in order: together in one transaction, or one by one where that fails. [`Lane`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use onceward::store::{MarkRequest, MarkedCommit, Ownership, PositionStore, Reason};
use onceward::{Delivery, Error, ErrorKind, HandlerError, Message, Outgoing, Publisher, TxHandler, Verdict};
use tokio_util::sync::CancellationToken;

use super::EffectsConfig;
use super::keys::{Fate, Marker};
use super::ownership::Owners;
use crate::dead_letter::{letter, stub};
use onceward_kafka::KafkaPublisher;

/// Between two tries of a database that does not answer.
const BREATH: Duration = Duration::from_millis(200);
/// The shortest wait for a key that another has claimed.
const SHORTEST: Duration = Duration::from_millis(10);

/// What the lanes of a run share.
pub(super) struct Lane<S, H> {
    pub(super) owners: Arc<Owners<S>>,
    pub(super) handler: H,
    pub(super) config: EffectsConfig,
    /// `None`: positions alone.
    pub(super) marker: Option<Marker>,
    pub(super) publisher: KafkaPublisher,
    pub(super) shutdown: CancellationToken,
}

/// How records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Effect and position are durable.
    Done,
    /// They had been when the partition was taken over, or by a commit without an answer.
    Known,
    /// A record with the same key had it, and the position is durable.
    Copy,
    /// A policy wants no effect of it, and the position is durable.
    Rejected,
    /// In the dead-letter topic, and the position is durable.
    Dead,
    /// Nothing happened: the partition has another owner, or the run is over.
    Left,
}

impl<S: PositionStore, H: TxHandler<S>> Lane<S, H> {
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
        let mut together = match messages.len() {
            0 | 1 => None,
            _ => self.together(&owner, &messages).await,
        }
        .map(Vec::into_iter);
        for (index, message) in fresh.into_iter().zip(messages) {
            ends[index] = match together.as_mut().and_then(Iterator::next) {
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

    /// Opens a transaction for `messages` and marks their keys in it; what is to be done with each.
    async fn begin(&self, messages: &[&Message]) -> Result<(S::Conn, Vec<Fate>), Error> {
        let store = &*self.owners.store;
        let open = store.begin().await?;
        match &self.marker {
            None => Ok((open, vec![Fate::Run; messages.len()])),
            Some(marker) => marker.mark(store, open, &self.owners.scope, messages).await,
        }
    }

    /// All of them in one transaction, and how each ended; `None` if they have to be tried one by one.
    async fn together(&self, owner: &Ownership, messages: &[&Message]) -> Option<Vec<End>> {
        let store = &self.owners.store;
        let (mut open, fates) = self.begin(messages).await.ok()?;
        let mut ends = Vec::with_capacity(messages.len());
        for (message, fate) in messages.iter().zip(&fates) {
            let ended = match fate {
                Fate::Run => self.run(&mut open, message).await.map(|()| End::Done),
                Fate::Copy => Ok(End::Copy),
                Fate::Reject => Ok(End::Rejected),
                Fate::Wait(_) | Fate::Letter(..) | Fate::Alone => {
                    Err(HandlerError::retry("its key cannot be completed with others"))
                }
            };
            match ended {
                Ok(end) => ends.push(end),
                Err(error) => {
                    tracing::debug!(delivery = ?message, error = error.text(), "a batch is undone and tried one by one");
                    store.rollback(open).await;
                    return None;
                }
            }
        }
        match store.commit_at(open, &self.owners.scope, &mark(owner, messages), None).await {
            Ok(MarkedCommit::Committed) => Some(ends),
            Ok(MarkedCommit::NotOwner) => Some(vec![self.not_owner(owner); messages.len()]),
            // Whether it was committed, or one of them before, shows one by one.
            Ok(MarkedCommit::Processed | MarkedCommit::Fenced) | Err(_) => None,
        }
    }

    /// One record, until its effect is durable or it has failed for good.
    async fn alone(&self, owner: &Ownership, message: &Message) -> End {
        let (mut attempts, mut pause) = (0, Duration::ZERO);
        while !self.shutdown.is_cancelled() {
            let (error, refused) = match self.attempt(owner, message).await {
                Attempt::Ended(end) => return end,
                Attempt::Store(error) => {
                    tracing::warn!(%error, "an effect is not committed yet; its partition waits for the database");
                    self.wait(BREATH).await;
                    continue;
                }
                Attempt::InProgress(retry_in) => {
                    tracing::debug!(delivery = ?message, "its key is claimed by another; its partition waits");
                    self.wait(retry_in.clamp(SHORTEST, BREATH)).await;
                    continue;
                }
                Attempt::Refused(reason, text) => (HandlerError::permanent(text), Some(reason)),
                Attempt::Failed(error) => (error, None),
            };
            // What is not the record's fault uses no attempt.
            let is_away = refused.is_none() && error.verdict() == Verdict::Unavailable;
            attempts += u32::from(refused.is_none() && !is_away);
            let reason = match error.verdict() {
                _ if is_away => None,
                _ if refused.is_some() => refused,
                Verdict::Permanent => Some(Reason::Permanent),
                _ if attempts >= self.config.retry.max_attempts => Some(Reason::AttemptsExhausted),
                _ => None,
            };
            let backoff = &self.config.retry.backoff;
            pause = backoff.delay(attempts.max(1), pause, &mut fastrand::Rng::new());
            match (reason, &self.config.dead_letters) {
                (Some(reason), Some(to)) => {
                    match self.send(&letter(to, message, reason, error.text(), attempts)).await {
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

    /// Publishes a letter, or what is left of one that is too large.
    async fn send(&self, letter: &Outgoing) -> Result<(), Error> {
        let publish = async |letter: &Outgoing| {
            let sent = self.publisher.publish(std::slice::from_ref(letter)).await;
            sent.into_iter().collect::<Result<(), Error>>()
        };
        match publish(letter).await {
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                tracing::error!(
                    %error, topic = letter.destination, bytes = letter.payload.len(),
                    "a dead letter does not fit into its topic: it is sent without payload; its record stays where it stands \
                     until the retention of its topic removes it"
                );
                publish(&stub(letter)).await
            }
            sent => sent,
        }
    }

    async fn attempt(&self, owner: &Ownership, message: &Message) -> Attempt {
        let (mut open, fates) = match self.begin(&[message]).await {
            Ok(begun) => begun,
            // What keeps keys from being marked is no fault of the record.
            Err(error) => return Attempt::Store(error),
        };
        let ended = match fates.into_iter().next() {
            Some(Fate::Copy) => Ok(End::Copy),
            Some(Fate::Reject) => Ok(End::Rejected),
            Some(Fate::Wait(retry_in)) => Err(Attempt::InProgress(retry_in)),
            Some(Fate::Letter(reason, text)) => Err(Attempt::Refused(reason, text)),
            // A single record is never told to run alone.
            Some(Fate::Run | Fate::Alone) | None => match self.run(&mut open, message).await {
                Ok(()) => Ok(End::Done),
                Err(error) => Err(Attempt::Failed(error)),
            },
        };
        match ended {
            Ok(end) => self.commit(owner, open, message, end).await,
            Err(attempt) => {
                self.owners.store.rollback(open).await;
                attempt
            }
        }
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
                _ => self.wait(BREATH).await,
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
    /// Without a run: it has failed for good.
    Refused(Reason, String),
    /// Without a run: its key is claimed by another for so long.
    InProgress(Duration),
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
