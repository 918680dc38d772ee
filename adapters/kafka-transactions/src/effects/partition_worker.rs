//! Processes the records of a partition in order: many in one transaction, and one that fails in a transaction of its own.
//! [`PartitionWorker`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use onceward::adapter::Delivery;
use onceward::store::{MarkRequest, MarkedCommit, Ownership, PositionStore, Reason};
use onceward::{Error, ErrorKind, HandlerError, Message, Outgoing, Publisher, TxHandler, Verdict};
use onceward_kafka::KafkaPublisher;
use tokio_util::sync::CancellationToken;

use crate::dead_letter::{create_letter, without_payload};
use crate::effects::config::EffectsConfig;
use crate::effects::keys::{KeyDecision, KeyMarker};
use crate::effects::owned_partitions::OwnedPartitions;
use crate::effects::part_plan::{PartPlan, TogetherFailure};
use crate::ready_first;

/// The delay before a retry while the database is unavailable.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// A transaction without keys has no further record after this time: it holds locks.
pub(super) const LONG_TRANSACTION: Duration = Duration::from_millis(250);
/// The shortest wait for a key that is claimed elsewhere.
const MIN_CLAIM_WAIT: Duration = Duration::from_millis(10);

/// Processes the partitions of a run.
pub(super) struct PartitionWorker<S, H> {
    pub(super) owned: Arc<OwnedPartitions<S>>,
    pub(super) handler: H,
    pub(super) config: EffectsConfig,
    /// `None` to deduplicate by position only.
    pub(super) marker: Option<KeyMarker>,
    pub(super) publisher: KafkaPublisher,
    pub(super) shutdown: CancellationToken,
}

/// The outcome of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordOutcome {
    /// Effect and position are durable.
    Committed,
    /// They were durable before: at the assignment, or by an unanswered commit.
    AlreadyCommitted,
    /// A record with the same key had the effect; the position is durable.
    Duplicate,
    /// Skipped by policy; the position is durable.
    Rejected,
    /// In the dead-letter topic; the position is durable.
    DeadLettered,
    /// Not processed: the partition has another owner, or the run ends.
    Abandoned,
}

impl<S: PositionStore, H: TxHandler<S>> PartitionWorker<S, H> {
    /// Processes deliveries of one partition. Returns the outcome of each, in order. All deliveries after an abandoned one are
    /// abandoned.
    pub(super) async fn process(&self, deliveries: &[Delivery]) -> Vec<RecordOutcome> {
        let mut ends = vec![RecordOutcome::Abandoned; deliveries.len()];
        let first = deliveries.first().and_then(|delivery| delivery.message.position());
        let Some(owner) = first.and_then(|position| self.owned.owner_at(position)) else { return ends };
        for (end, delivery) in ends.iter_mut().zip(deliveries) {
            if owner.is_done(offset_of(&delivery.message)) {
                *end = RecordOutcome::AlreadyCommitted;
            }
        }
        let fresh: Vec<_> =
            (0..deliveries.len()).filter(|index| ends[*index] == RecordOutcome::Abandoned).collect();
        let messages: Vec<_> = fresh.iter().map(|index| &deliveries[*index].message).collect();
        for (index, end) in fresh.into_iter().zip(self.process_fresh(&owner, &messages).await) {
            ends[index] = end;
        }
        if let Some(first) = ends.iter().position(|end| *end == RecordOutcome::Abandoned) {
            ends[first..].fill(RecordOutcome::Abandoned);
        }
        ends
    }

    /// Processes messages that were not processed before, in as few transactions as possible. Returns their outcomes, up to the first one
    /// that is abandoned.
    async fn process_fresh(&self, owner: &Ownership, messages: &[&Message]) -> Vec<RecordOutcome> {
        let mut ends = Vec::with_capacity(messages.len());
        let mut plan = PartPlan::default();
        while ends.len() < messages.len() && ends.last() != Some(&RecordOutcome::Abandoned) {
            let rest = &messages[ends.len()..];
            let together = plan.together(rest.len());
            if together < 2 {
                let end = self.process_alone(owner, rest[0]).await;
                ends.push(end);
                plan.ended_alone(end == RecordOutcome::AlreadyCommitted);
            } else if self.shutdown.is_cancelled() {
                ends.push(RecordOutcome::Abandoned);
            } else {
                match self.process_together(owner, &rest[..together]).await {
                    Ok(ended) => {
                        plan.ended_together(ended.len());
                        ends.extend(ended);
                    }
                    Err(failure) => plan.failed(failure),
                }
            }
        }
        ends
    }

    /// Opens a transaction for `messages` and completes their keys in it. Returns the decision about each.
    async fn begin(&self, messages: &[&Message]) -> Result<(S::Conn, Vec<KeyDecision>), Error> {
        let store = &*self.owned.store;
        let open = store.begin().await?;
        match &self.marker {
            None => Ok((open, vec![KeyDecision::Run; messages.len()])),
            Some(marker) => marker.mark(store, open, &self.owned.scope, messages).await,
        }
    }

    /// Processes messages in one transaction: all of them, or those that there is time for. Returns their outcomes; nothing is committed
    /// after an error, except perhaps all by an unanswered commit.
    async fn process_together(
        &self,
        owner: &Ownership,
        messages: &[&Message],
    ) -> Result<Vec<RecordOutcome>, TogetherFailure> {
        let store = &self.owned.store;
        let (mut open, decisions) = self.begin(messages).await.map_err(|_| TogetherFailure::Transaction)?;
        let began = Instant::now();
        let mut ends = Vec::with_capacity(messages.len());
        for (message, decision) in messages.iter().zip(&decisions) {
            if !ends.is_empty() && self.must_end(began) {
                if self.marker.is_none() {
                    break;
                }
                // Keys are completed in it whose effects are missing.
                if self.shutdown.is_cancelled() {
                    store.rollback(open).await;
                    return Ok(vec![RecordOutcome::Abandoned]);
                }
            }
            let ended = match decision {
                KeyDecision::Run => self.run(&mut open, message).await.map(|()| RecordOutcome::Committed),
                KeyDecision::Duplicate => Ok(RecordOutcome::Duplicate),
                KeyDecision::Reject => Ok(RecordOutcome::Rejected),
                KeyDecision::Wait(_) | KeyDecision::DeadLetter(..) | KeyDecision::Alone => {
                    Err(HandlerError::retry("its key requires a transaction of its own"))
                }
            };
            match ended {
                Ok(end) => ends.push(end),
                Err(error) => {
                    tracing::debug!(delivery = ?message, error = error.text(), "transaction rolled back; the record will be processed alone");
                    store.rollback(open).await;
                    return Err(TogetherFailure::Record(ends.len()));
                }
            }
        }
        let mark = to_mark_request(owner, &messages[..ends.len()]);
        match store.commit_at(open, &self.owned.scope, &mark, None).await {
            Ok(MarkedCommit::Committed) => Ok(ends),
            Ok(MarkedCommit::NotOwner) => Ok(vec![self.not_owner(owner); ends.len()]),
            Err(error) if error.is_retryable() => Err(TogetherFailure::Unanswered(ends.len())),
            Ok(MarkedCommit::Processed | MarkedCommit::Fenced) | Err(_) => {
                Err(TogetherFailure::Commit(ends.len()))
            }
        }
    }

    /// True if a transaction should have no further record.
    fn must_end(&self, began: Instant) -> bool {
        began.elapsed() > LONG_TRANSACTION || self.shutdown.is_cancelled()
    }

    /// Processes one record until its effect is durable or it has failed permanently.
    async fn process_alone(&self, owner: &Ownership, message: &Message) -> RecordOutcome {
        let (mut attempts, mut pause) = (0, Duration::ZERO);
        while !self.shutdown.is_cancelled() {
            let (error, rejected) = match self.attempt(owner, message).await {
                EffectAttempt::Ended(end) => return end,
                EffectAttempt::Store(error) => {
                    tracing::warn!(%error, "committing an effect failed; retrying");
                    self.wait(RETRY_DELAY).await;
                    continue;
                }
                EffectAttempt::InProgress(retry_in) => {
                    tracing::debug!(delivery = ?message, "key claimed elsewhere; partition waits");
                    self.wait(retry_in.clamp(MIN_CLAIM_WAIT, RETRY_DELAY)).await;
                    continue;
                }
                EffectAttempt::Rejected(reason, text) => (HandlerError::permanent(text), Some(reason)),
                EffectAttempt::Failed(error) => (error, None),
            };
            // An unavailable dependency is not the record's fault.
            let is_unavailable = rejected.is_none() && error.verdict() == Verdict::Unavailable;
            attempts += u32::from(rejected.is_none() && !is_unavailable);
            let reason = match error.verdict() {
                _ if is_unavailable => None,
                _ if rejected.is_some() => rejected,
                Verdict::Permanent => Some(Reason::Permanent),
                _ if attempts >= self.config.retry.max_attempts => Some(Reason::AttemptsExhausted),
                _ => None,
            };
            let backoff = &self.config.retry.backoff;
            pause = backoff.delay(attempts.max(1), pause, &mut fastrand::Rng::new());
            match (reason, &self.config.dead_letters) {
                (Some(reason), Some(to)) => {
                    match self
                        .publish_letter(&create_letter(to, message, reason, error.text(), attempts))
                        .await
                    {
                        Ok(()) => return self.commit_position(owner, message).await,
                        Err(error) => {
                            tracing::error!(%error, "publishing a dead letter failed; partition waits")
                        }
                    }
                    self.wait(backoff.max).await;
                }
                (Some(_), None) => {
                    tracing::error!(
                        delivery = ?message, error = error.text(),
                        "record failed permanently and holds up its partition; remove the cause, or set dead_letters"
                    );
                    self.wait(backoff.max).await;
                }
                (None, _) => {
                    tracing::debug!(delivery = ?message, attempts, error = error.text(), "handler failed; retrying");
                    let least = if let Verdict::RetryAfter(least) = error.verdict() { least } else { pause };
                    self.wait(least.max(pause)).await;
                }
            }
        }
        RecordOutcome::Abandoned
    }

    /// Publishes a dead letter, without payload if it is too large.
    async fn publish_letter(&self, letter: &Outgoing) -> Result<(), Error> {
        let publish = async |letter: &Outgoing| {
            let sent = self.publisher.publish(std::slice::from_ref(letter)).await;
            sent.into_iter().collect::<Result<(), Error>>()
        };
        match publish(letter).await {
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                tracing::error!(
                    %error, topic = letter.destination, bytes = letter.payload.len(),
                    "dead letter exceeds its topic's limit; sending it without payload. Its record stays in the source topic until \
                     retention deletes it"
                );
                publish(&without_payload(letter)).await
            }
            sent => sent,
        }
    }

    async fn attempt(&self, owner: &Ownership, message: &Message) -> EffectAttempt {
        let (mut open, decisions) = match self.begin(&[message]).await {
            Ok(begun) => begun,
            // A failure to complete keys is not the record's fault.
            Err(error) => return EffectAttempt::Store(error),
        };
        let ended = match decisions.into_iter().next() {
            Some(KeyDecision::Duplicate) => Ok(RecordOutcome::Duplicate),
            Some(KeyDecision::Reject) => Ok(RecordOutcome::Rejected),
            Some(KeyDecision::Wait(retry_in)) => Err(EffectAttempt::InProgress(retry_in)),
            Some(KeyDecision::DeadLetter(reason, text)) => Err(EffectAttempt::Rejected(reason, text)),
            // A single record is alone already.
            Some(KeyDecision::Run | KeyDecision::Alone) | None => match self.run(&mut open, message).await {
                Ok(()) => Ok(RecordOutcome::Committed),
                Err(error) => Err(EffectAttempt::Failed(error)),
            },
        };
        match ended {
            Ok(end) => self.commit(owner, open, message, end).await,
            Err(attempt) => {
                self.owned.store.rollback(open).await;
                attempt
            }
        }
    }

    /// Stores the position of a dead-lettered record, without an effect.
    async fn commit_position(&self, owner: &Ownership, message: &Message) -> RecordOutcome {
        while !self.shutdown.is_cancelled() {
            let tried = match self.owned.store.begin().await {
                Ok(open) => self.commit(owner, open, message, RecordOutcome::DeadLettered).await,
                Err(error) => EffectAttempt::Store(error),
            };
            match tried {
                EffectAttempt::Ended(RecordOutcome::AlreadyCommitted) => return RecordOutcome::DeadLettered,
                EffectAttempt::Ended(end) => return end,
                _ => self.wait(RETRY_DELAY).await,
            }
        }
        RecordOutcome::Abandoned
    }

    async fn commit(
        &self,
        owner: &Ownership,
        open: S::Conn,
        message: &Message,
        end: RecordOutcome,
    ) -> EffectAttempt {
        match self
            .owned
            .store
            .commit_at(open, &self.owned.scope, &to_mark_request(owner, &[message]), None)
            .await
        {
            Ok(MarkedCommit::Committed) => EffectAttempt::Ended(end),
            Ok(MarkedCommit::Processed) => EffectAttempt::Ended(RecordOutcome::AlreadyCommitted),
            Ok(MarkedCommit::NotOwner | MarkedCommit::Fenced) => EffectAttempt::Ended(self.not_owner(owner)),
            // A constraint deferred to the commit is the handler's failure.
            Err(error) if !error.is_retryable() => EffectAttempt::Failed(error.into()),
            Err(error) => EffectAttempt::Store(error),
        }
    }

    fn not_owner(&self, owner: &Ownership) -> RecordOutcome {
        let (partition, epoch) = (owner.partition.partition, owner.epoch);
        tracing::warn!(
            partition,
            epoch,
            "partition has another owner in the database; nothing more of it is committed"
        );
        RecordOutcome::Abandoned
    }

    /// Runs the handler in an open transaction. A panic is caught, and a run that exceeds its timeout is dropped.
    async fn run(&self, open: &mut S::Conn, message: &Message) -> Result<(), HandlerError> {
        if let Some(defect) = message.defect() {
            return Err(HandlerError::permanent(defect.to_string()));
        }
        let tx = self.owned.store.lend(open);
        // All of the user's code runs inside: the call as well as the future.
        let run = async { self.handler.handle(message.clone(), tx).await };
        let limit = self.config.handler_timeout;
        match ready_first::timeout(limit, AssertUnwindSafe(run).catch_unwind()).await {
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

enum EffectAttempt {
    Ended(RecordOutcome),
    /// The handler failed, or a constraint deferred to the commit.
    Failed(HandlerError),
    /// The record failed permanently, without a run.
    Rejected(Reason, String),
    /// The key is claimed elsewhere; the remaining lease.
    InProgress(Duration),
    /// The database failed.
    Store(Error),
}

/// Everything before the first message is processed, since a partition's batches are processed in order.
fn to_mark_request(owner: &Ownership, messages: &[&Message]) -> MarkRequest {
    let offsets: Vec<_> = messages.iter().map(|message| offset_of(message)).collect();
    // With the transaction the last one is processed as well, and so is what lies between them.
    let floor = offsets.last().map_or(0, |last| last + 1);
    MarkRequest { partition: owner.partition.clone(), epoch: owner.epoch, offsets, floor }
}

fn offset_of(message: &Message) -> u64 {
    message.position().map_or(0, |position| position.offset)
}
