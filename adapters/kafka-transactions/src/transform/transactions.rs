//! The transactional producer, which reports the outcome of each transaction: [`TransactionalProducer`].

use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind, Outgoing};
use onceward_kafka::internal::{classify, to_headers, to_payload, to_timestamp_ms};
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use crate::transform::batch::Produced;
use crate::transform::rejections::Rejections;
use crate::transform::send_groups::{Rejection, SendGroups};

const OPERATION: &str = "commit a Kafka transaction";
/// The delay before a retry when the client's queue is full, or a call may be repeated.
const RETRY_DELAY: Duration = Duration::from_millis(5);
/// The delay before a retry when the client was not ready.
const NOT_READY_DELAY: Duration = Duration::from_millis(20);
/// How often it is looked whether all records are confirmed.
const FLUSH_STEP: Duration = Duration::from_millis(2);
/// The longest and shortest timeout of one attempt of a call that may be repeated.
const MAX_ATTEMPT: Duration = Duration::from_secs(5);
const MIN_ATTEMPT: Duration = Duration::from_millis(100);

/// The outcome of a transaction.
#[derive(Debug)]
pub(super) enum TransactionOutcome {
    /// Records and offsets are durable.
    Committed,
    /// It had no effect.
    Aborted,
    /// It may have been committed: a new producer with the same id ends it, and the group's offset shows its outcome.
    Unknown,
    /// The record with this index is rejected permanently. The transaction had no effect.
    Rejected(usize, Error),
    /// A group of records was rejected. The transaction had no effect; the next run sends smaller groups.
    Split,
}

/// The outcome of one attempt.
enum TransactionAttempt {
    Ended(TransactionOutcome),
    /// The client was not ready. The transaction had no effect.
    NotReady,
}

/// A producer with a transactional id.
pub(super) struct TransactionalProducer {
    producer: ThreadedProducer<Rejections>,
    commit_timeout: Duration,
    groups: SendGroups,
}

impl TransactionalProducer {
    /// Connects. Ends the transactions that another producer with this id has left open: those that were being committed are
    /// committed, all others are aborted. Blocks up to a minute.
    ///
    /// # Errors
    /// The cluster does not answer within a minute, or denies access.
    pub(super) fn open(client: &ClientConfig, commit_timeout: Duration) -> Result<Self, Error> {
        let failed = |error| classify("start Kafka transactions", error);
        let producer: ThreadedProducer<Rejections> =
            client.create_with_context(Rejections::default()).map_err(failed)?;
        let until = Instant::now() + Duration::from_secs(60);
        repeat(until, |limit| producer.init_transactions(limit)).map_err(failed)?;
        Ok(Self { producer, commit_timeout, groups: SendGroups::default() })
    }

    /// Sends what is produced for a batch, with the offsets, and commits. `is_repeated` if the batch was rejected or split. Blocks.
    ///
    /// # Errors
    /// The producer was fenced, or has another fatal error: it must not be retried.
    pub(super) fn run(
        &mut self,
        produced: &[Produced],
        is_repeated: bool,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<TransactionOutcome, Error> {
        if !is_repeated {
            self.groups.begin_batch();
        }
        let until = Instant::now() + self.commit_timeout;
        loop {
            match self.attempt(produced, offsets, group, until)? {
                TransactionAttempt::NotReady if Instant::now() < until => {
                    std::thread::sleep(NOT_READY_DELAY);
                }
                TransactionAttempt::NotReady => return Ok(TransactionOutcome::Aborted),
                TransactionAttempt::Ended(outcome) => return Ok(outcome),
            }
        }
    }

    fn attempt(
        &mut self,
        produced: &[Produced],
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        until: Instant,
    ) -> Result<TransactionAttempt, Error> {
        drop(self.producer.context().take());
        self.groups.begin();
        if let Err(error) = self.producer.begin_transaction() {
            return self.failed(error);
        }
        for (index, own) in produced.iter().enumerate() {
            for outgoing in &own.outgoing {
                match self.send(index, outgoing, until) {
                    Ok(()) => {}
                    Err(SendFailure::Rejected(error)) => {
                        return Ok(TransactionAttempt::Ended(match self.abort()? {
                            TransactionOutcome::Aborted => TransactionOutcome::Rejected(index, error),
                            other => other,
                        }));
                    }
                    Err(SendFailure::Client(error)) => return self.failed(error),
                }
            }
        }
        if let Err(error) =
            repeat(until, |limit| self.producer.send_offsets_to_transaction(offsets, group, limit))
        {
            return self.failed(error);
        }
        if let Err(error) = self.wait_confirmed(until) {
            return self.failed(error);
        }
        match repeat(until, |limit| self.producer.commit_transaction(limit)) {
            Ok(()) => Ok(TransactionAttempt::Ended(TransactionOutcome::Committed)),
            // The commit continues in the client, and cannot be revoked.
            Err(error) if is_retriable(&error) => {
                tracing::warn!(%error, "transaction commit not answered; its outcome is unknown");
                Ok(TransactionAttempt::Ended(TransactionOutcome::Unknown))
            }
            Err(error) => self.failed(error),
        }
    }

    fn send(&mut self, index: usize, outgoing: &Outgoing, until: Instant) -> Result<(), SendFailure> {
        let headers = to_headers(outgoing).map_err(SendFailure::Rejected)?;
        if self.groups.starts_group(index, outgoing) {
            self.wait_confirmed(until).map_err(SendFailure::Client)?;
            self.groups.confirmed();
        }
        let group = self.groups.add(index, outgoing);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&outgoing.destination, group);
        record.headers = headers;
        record.key = outgoing.order_key.as_deref();
        record.payload = to_payload(outgoing);
        record.timestamp = to_timestamp_ms(outgoing);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), again)) if Instant::now() < until => {
                    record = again;
                    std::thread::sleep(RETRY_DELAY);
                }
                Err((KafkaError::MessageProduction(code), _)) if is_record_error(code) => {
                    let operation = format!("produce to topic {}", outgoing.destination);
                    return Err(SendFailure::Rejected(classify(
                        operation,
                        KafkaError::MessageProduction(code),
                    )));
                }
                Err((error, _)) => return Err(SendFailure::Client(error)),
            }
        }
    }

    /// Waits until all records that were sent are confirmed or have failed. In one longer flush, as in a commit, the client would look
    /// again after 100 ms.
    fn wait_confirmed(&self, until: Instant) -> KafkaResult<()> {
        let until = until.max(Instant::now() + MIN_ATTEMPT);
        loop {
            match self.producer.flush(FLUSH_STEP) {
                Err(KafkaError::Flush(Code::OperationTimedOut)) if Instant::now() < until => {}
                ended => return ended,
            }
        }
    }

    /// Aborts the transaction after `error`.
    fn failed(&mut self, error: KafkaError) -> Result<TransactionAttempt, Error> {
        let is_fatal = matches!(&error, KafkaError::Transaction(own) if own.is_fatal());
        if is_fatal || self.producer.client().fatal_error().is_some() {
            let what = "fatal producer error: another producer with the same transactional id has fenced this one, or the cluster \
                        has lost its state; give each process its own transactional_id";
            return Err(Error::new(ErrorKind::Internal, OPERATION, what).with_source(error));
        }
        match self.abort()? {
            TransactionOutcome::Aborted => {}
            other => return Ok(TransactionAttempt::Ended(other)),
        }
        Ok(match self.groups.evaluate(&self.producer.context().take()) {
            Some(Rejection::Record(index, rejected)) => {
                TransactionAttempt::Ended(TransactionOutcome::Rejected(index, rejected))
            }
            Some(Rejection::Split) => {
                tracing::debug!(%error, "group of records rejected; sending smaller groups");
                TransactionAttempt::Ended(TransactionOutcome::Split)
            }
            None if is_not_ready(&error) => TransactionAttempt::NotReady,
            None => {
                tracing::warn!(%error, "transaction aborted; retrying its records");
                TransactionAttempt::Ended(TransactionOutcome::Aborted)
            }
        })
    }

    fn abort(&self) -> Result<TransactionOutcome, Error> {
        match repeat(Instant::now() + self.commit_timeout, |limit| self.producer.abort_transaction(limit)) {
            Ok(()) => Ok(TransactionOutcome::Aborted),
            Err(error) if self.producer.client().fatal_error().is_some() => {
                let what = "another producer with the same transactional id has fenced this one";
                Err(Error::new(ErrorKind::Internal, OPERATION, what).with_source(error))
            }
            // A new producer with the same id ends the transaction.
            Err(error) => {
                tracing::warn!(%error, "aborting a transaction failed");
                Ok(TransactionOutcome::Unknown)
            }
        }
    }
}

enum SendFailure {
    /// The record was rejected.
    Rejected(Error),
    /// The client has failed.
    Client(KafkaError),
}

fn is_record_error(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
    )
}

/// After a rejection the broker misses the rejected records' sequence numbers, and rejects what comes next. The client then obtains a
/// new producer epoch, and rejects calls until it has it.
fn is_not_ready(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::State | Code::OutOfOrderSequenceNumber))
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(own) if own.is_retriable())
}

/// Repeats a call while its error is retriable, until `until`. The operation continues in the client in between.
fn repeat(until: Instant, mut call: impl FnMut(Duration) -> KafkaResult<()>) -> KafkaResult<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match call(left.clamp(MIN_ATTEMPT, MAX_ATTEMPT)) {
            Err(error) if is_retriable(&error) && Instant::now() < until => {
                tracing::debug!(%error, "transactional call failed; retrying");
                std::thread::sleep(RETRY_DELAY);
            }
            ended => return ended,
        }
    }
}
