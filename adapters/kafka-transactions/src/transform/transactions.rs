//! The transactional producer: [`Transactions`] tells what became of each transaction, or that nobody knows.

use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind, Outgoing};
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use super::parts::{Parts, Refused};
use super::reports::Reports;
use onceward_kafka::internal::error;
use onceward_kafka::internal::record as outgoing;

const OPERATION: &str = "commit a Kafka transaction";
/// How often a full queue of the client's is tried again.
const FULL: Duration = Duration::from_millis(5);
/// How soon a client that was not ready is asked again.
const SOON: Duration = Duration::from_millis(20);
/// How long one try of a call that may be repeated takes, at most and at least.
const TRY: Duration = Duration::from_secs(5);
const LEAST: Duration = Duration::from_millis(100);

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum End {
    /// Results and offsets are durable, together.
    Committed,
    /// Nothing of it happened.
    Aborted,
    /// It may have happened: a new producer with the same id ends it, and where the group stands tells how.
    Unknown,
    /// This record, by its index, cannot be sent, today or ever. Nothing happened.
    Refused(usize, Error),
    /// The broker refused records that were sent together. Nothing happened; the next run sends them in smaller groups.
    Parted,
}

/// How one attempt at a transaction ended.
enum Attempt {
    Ended(End),
    /// The client was not ready for it yet. Nothing happened.
    TooSoon,
}

/// A producer with a transactional id.
pub(super) struct Transactions {
    producer: ThreadedProducer<Reports>,
    limit: Duration,
    parts: Parts,
}

impl Transactions {
    /// Connects. Transactions that another producer with this id has left open are ended: what was about to be committed is
    /// committed, everything else is aborted.
    ///
    /// # Errors
    /// The cluster does not answer within a minute, or refuses.
    pub(super) fn open(client: &ClientConfig, limit: Duration) -> Result<Self, Error> {
        let failed = |error| error::kafka("start Kafka transactions", error);
        let producer: ThreadedProducer<Reports> =
            client.create_with_context(Reports::default()).map_err(failed)?;
        let until = Instant::now() + Duration::from_secs(60);
        repeat(until, |limit| producer.init_transactions(limit)).map_err(failed)?;
        Ok(Self { producer, limit, parts: Parts::default() })
    }

    /// Sends what was made for each record, with the offsets of the records, and commits.
    ///
    /// # Errors
    /// The producer was fenced, or cannot go on for another reason: it must not be tried again.
    pub(super) fn run<'a>(
        &mut self,
        made: impl Iterator<Item = &'a [Outgoing]> + Clone,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<End, Error> {
        let until = Instant::now() + self.limit;
        loop {
            let end = match self.attempt(made.clone(), offsets, group, until)? {
                Attempt::TooSoon if Instant::now() < until => {
                    std::thread::sleep(SOON);
                    continue;
                }
                Attempt::TooSoon => End::Aborted,
                Attempt::Ended(end) => end,
            };
            if let End::Committed | End::Aborted = end {
                self.parts.over();
            }
            return Ok(end);
        }
    }

    fn attempt<'a>(
        &mut self,
        made: impl Iterator<Item = &'a [Outgoing]>,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        until: Instant,
    ) -> Result<Attempt, Error> {
        drop(self.producer.context().take());
        self.parts.begin();
        if let Err(error) = self.producer.begin_transaction() {
            return self.failed(error);
        }
        for (index, outgoing) in made.enumerate() {
            for outgoing in outgoing {
                match self.send(index, outgoing, until) {
                    Ok(()) => {}
                    Err(Failed::Refused(error)) => {
                        return Ok(Attempt::Ended(match self.abort()? {
                            End::Aborted => End::Refused(index, error),
                            other => other,
                        }));
                    }
                    Err(Failed::Client(error)) => return self.failed(error),
                }
            }
        }
        if let Err(error) =
            repeat(until, |limit| self.producer.send_offsets_to_transaction(offsets, group, limit))
        {
            return self.failed(error);
        }
        match repeat(until, |limit| self.producer.commit_transaction(limit)) {
            Ok(()) => Ok(Attempt::Ended(End::Committed)),
            // The commit goes on by itself, and cannot be taken back.
            Err(error) if is_retriable(&error) => {
                tracing::warn!(%error, "a commit was not answered; its outcome is unknown");
                Ok(Attempt::Ended(End::Unknown))
            }
            Err(error) => self.failed(error),
        }
    }

    fn send(&mut self, index: usize, outgoing: &Outgoing, until: Instant) -> Result<(), Failed> {
        let headers = outgoing::headers(outgoing).map_err(Failed::Refused)?;
        if self.parts.begins_group(index, outgoing) {
            let left = until.saturating_duration_since(Instant::now());
            self.producer.flush(left.max(LEAST)).map_err(Failed::Client)?;
            self.parts.confirmed();
        }
        let group = self.parts.add(index, outgoing);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&outgoing.destination, group);
        record = record.headers(headers);
        record.key = outgoing.order_key.as_deref();
        record.payload = outgoing::payload(outgoing);
        record.timestamp = outgoing::timestamp_ms(outgoing);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), again)) if Instant::now() < until => {
                    record = again;
                    std::thread::sleep(FULL);
                }
                Err((KafkaError::MessageProduction(code), _)) if is_of_the_record(code) => {
                    let operation = format!("produce to topic {}", outgoing.destination);
                    return Err(Failed::Refused(error::kafka(
                        operation,
                        KafkaError::MessageProduction(code),
                    )));
                }
                Err((error, _)) => return Err(Failed::Client(error)),
            }
        }
    }

    /// Gives a transaction up after `error`.
    fn failed(&mut self, error: KafkaError) -> Result<Attempt, Error> {
        let is_fatal = matches!(&error, KafkaError::Transaction(own) if own.is_fatal());
        if is_fatal || self.producer.client().fatal_error().is_some() {
            let what = "the producer cannot go on: another one with the same transactional id took its place, or the cluster lost \
                        its state; see to it that each process has an id of its own";
            return Err(Error::new(ErrorKind::Internal, OPERATION, what).with_source(error));
        }
        match self.abort()? {
            End::Aborted => {}
            other => return Ok(Attempt::Ended(other)),
        }
        Ok(match self.parts.refused(&self.producer.context().take()) {
            Some(Refused::One(index, refused)) => Attempt::Ended(End::Refused(index, refused)),
            Some(Refused::Several) => {
                tracing::debug!(%error, "records that were refused together are sent again in smaller groups");
                Attempt::Ended(End::Parted)
            }
            None if is_too_soon(&error) => Attempt::TooSoon,
            None => {
                tracing::warn!(%error, "a transaction is aborted; its records run again");
                Attempt::Ended(End::Aborted)
            }
        })
    }

    fn abort(&self) -> Result<End, Error> {
        match repeat(Instant::now() + self.limit, |limit| self.producer.abort_transaction(limit)) {
            Ok(()) => Ok(End::Aborted),
            Err(error) if self.producer.client().fatal_error().is_some() => {
                let what = "the producer was fenced by another one with the same transactional id";
                Err(Error::new(ErrorKind::Internal, OPERATION, what).with_source(error))
            }
            // A new producer with the same id ends it.
            Err(error) => {
                tracing::warn!(%error, "a transaction could not be aborted");
                Ok(End::Unknown)
            }
        }
    }
}

enum Failed {
    /// The record cannot be sent.
    Refused(Error),
    /// The client says no.
    Client(KafkaError),
}

fn is_of_the_record(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
    )
}

/// After a refusal the client gets a new epoch of its id, and sends nothing of a transaction before it has it.
fn is_too_soon(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(Code::State)
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(own) if own.is_retriable())
}

/// Repeats a call while it says that it may be repeated, until `until`. What it does goes on in between.
fn repeat(until: Instant, mut call: impl FnMut(Duration) -> KafkaResult<()>) -> KafkaResult<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match call(left.clamp(LEAST, TRY)) {
            Err(error) if is_retriable(&error) && Instant::now() < until => {
                tracing::debug!(%error, "repeated");
                std::thread::sleep(FULL);
            }
            ended => return ended,
        }
    }
}
