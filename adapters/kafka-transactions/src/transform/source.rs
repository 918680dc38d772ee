//! The consuming client of a transform: [`TransformSource`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind, OwnHeaders};
use onceward_kafka::internal::{
    AuthFailures, ConsumerClientConfig, classify, is_authentication, to_message, try_describe_topics,
};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::transform::assignment::{PartitionAssignment, TransformAssignment};
use crate::transform::batch::BatchRecord;
use crate::transform::config::TransformConfig;
use crate::transform::offsets::log_replaced;
use crate::transform::running_transaction::RunningTransaction;

/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between checks of topic ids, and their timeout.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

const OPERATION: &str = "run a transform";

/// The consuming client of a transform.
pub(super) struct TransformSource {
    client: BaseConsumer<TransformAssignment>,
    topics: Vec<String>,
    /// The partition of the last record, which most records share with the one before.
    last: Option<Arc<PartitionAssignment>>,
    /// The number of changes of the assignment that were seen.
    changes: u64,
    /// Partitions that were revoked while they were paused are still paused when they are assigned again.
    is_resume_due: bool,
    /// When the topic ids were last checked.
    checked: Instant,
    auth_failures: AuthFailures,
}

impl TransformSource {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// The client cannot be created, or the cluster does not report its id.
    pub(super) fn open(config: &TransformConfig, open: Arc<RunningTransaction>) -> Result<Self, Error> {
        let failed = |error| classify(OPERATION, error);
        let ConsumerClientConfig { client, from_end } = config.consumer()?;
        let client: BaseConsumer<_> =
            client.create_with_context(TransformAssignment::new(from_end, open)).map_err(failed)?;
        let cluster = client.client().fetch_cluster_id(REQUEST_TIMEOUT).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                OPERATION,
                "the cluster does not report its id, which positions require",
            )
        })?;
        client.context().set_cluster(cluster);
        let topics = config.source.topics.names.clone();
        let names: Vec<_> = topics.iter().map(String::as_str).collect();
        client.subscribe(&names).map_err(failed)?;
        let (checked, auth_failures) = (Instant::now(), AuthFailures::default());
        Ok(Self { client, topics, last: None, changes: 0, is_resume_due: false, checked, auth_failures })
    }

    /// Polls for a record.
    ///
    /// # Errors
    /// The run must end: a topic was recreated, or the client has failed.
    pub(super) fn poll(&mut self, now: Instant, wait: Duration) -> Result<Option<BatchRecord>, Error> {
        // The record borrows the client.
        let Self { client, last, .. } = self;
        let polled = match client.poll(wait) {
            Some(Ok(record)) => Ok(to_batch_record(client.context(), last, &record)?),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        };
        let changes = self.client.context().changes();
        if changes != self.changes {
            (self.changes, self.is_resume_due) = (changes, true);
            if let Some(error) = self.client.context().take_error() {
                return Err(error);
            }
        }
        if self.is_resume_due {
            self.is_resume_due = !self.set_paused(false);
        }
        self.check_topics(now)?;
        polled.or_else(|error| self.client_error(error))
    }

    /// # Errors
    /// The client does not recover from `error`.
    fn client_error(&mut self, error: KafkaError) -> Result<Option<BatchRecord>, Error> {
        let operation = format!("receive from topic {}", self.topics.join(", "));
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(classify(operation, error));
        }
        let is_authentication = is_authentication(&error);
        let error = classify(operation, error);
        match error.kind() {
            ErrorKind::Denied if is_authentication && !self.auth_failures.record(Instant::now()) => {
                tracing::warn!(%error, "authentication failed; retrying");
                Ok(None)
            }
            ErrorKind::Denied | ErrorKind::Config => Err(error),
            _ => {
                tracing::warn!(%error, "client error; the client continues");
                Ok(None)
            }
        }
    }

    /// Checks the ids of the topics, if that is due.
    ///
    /// # Errors
    /// A topic was recreated: offsets of the old log must not be committed for the new one.
    fn check_topics(&mut self, now: Instant) -> Result<(), Error> {
        if now.saturating_duration_since(self.checked) < CHECK_INTERVAL {
            return Ok(());
        }
        self.checked = Instant::now();
        let before = self.client.context().topic_ids();
        let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        // Without an answer the next check asks again.
        let described = try_describe_topics(self.client.client(), &names, CHECK_TIMEOUT);
        for ((name, before), found) in before.iter().zip(described.unwrap_or_default()) {
            if found.ok().and_then(|found| found.id).is_some_and(|id| id != *before) {
                return Err(log_replaced(name, None));
            }
        }
        Ok(())
    }

    /// Returns how often partitions were assigned or revoked.
    pub(super) fn changes(&self) -> u64 {
        self.client.context().changes()
    }

    /// Pauses or resumes all partitions. Returns false if the client refuses.
    pub(super) fn set_paused(&self, pause: bool) -> bool {
        let changed = self.client.assignment().and_then(|assignment| match pause {
            true => self.client.pause(&assignment),
            false => self.client.resume(&assignment),
        });
        if let Err(error) = &changed {
            tracing::warn!(%error, pause, "pausing or resuming partitions failed; retrying");
        }
        changed.is_ok()
    }

    /// Returns what the group's coordinator identifies this member by.
    ///
    /// # Errors
    /// The client has no group.
    pub(super) fn group(&self) -> Result<ConsumerGroupMetadata, Error> {
        self.client.group_metadata().ok_or_else(|| {
            Error::new(ErrorKind::Internal, OPERATION, "the client has no group; open another one")
        })
    }

    /// Seeks the group's committed offset in each partition of `records` that is still assigned. Whatever was consumed of them is
    /// not current any more.
    ///
    /// # Errors
    /// The group's offsets cannot be read within `timeout`, or the client refuses to seek.
    pub(super) fn rewind(&mut self, records: &[BatchRecord], timeout: Duration) -> Result<(), Error> {
        let failed = |error| classify("rewind after a transaction", error);
        let mut firsts: Vec<(Arc<PartitionAssignment>, i64)> = Vec::new();
        for own in records.iter().filter(|own| own.from.is_current()) {
            if !firsts.iter().rev().any(|(from, _)| Arc::ptr_eq(from, &own.from)) {
                firsts.push((Arc::clone(&own.from), own.offset));
            }
        }
        if firsts.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (from, _) in &firsts {
            list.add_partition(&from.topic, from.partition);
        }
        let until = Instant::now() + timeout;
        let committed = loop {
            match self.client.committed_offsets(list.clone(), REQUEST_TIMEOUT) {
                Ok(committed) => break committed,
                Err(error) if Instant::now() >= until => return Err(failed(error)),
                Err(error) => tracing::warn!(%error, "reading the group's offsets failed; retrying"),
            }
        };
        for (from, first) in firsts {
            let found = committed.find_partition(&from.topic, from.partition).map(|own| own.offset());
            let next = match found {
                Some(Offset::Offset(offset)) => offset,
                // The group has no offset: the batch starts where the group starts.
                _ => first,
            };
            match self.client.seek(&from.topic, from.partition, Offset::Offset(next), REQUEST_TIMEOUT) {
                Ok(()) => self.client.context().renew(&from),
                // Just revoked: the next owner starts there.
                Err(_) if !from.is_current() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

/// Converts a record; `None` if its partition is not assigned.
///
/// # Errors
/// The log was replaced: a later record was consumed before.
fn to_batch_record(
    assignment: &TransformAssignment,
    last: &mut Option<Arc<PartitionAssignment>>,
    record: &BorrowedMessage<'_>,
) -> Result<Option<BatchRecord>, Error> {
    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
    if !last.as_ref().is_some_and(|last| last.is(topic, partition) && last.is_current()) {
        *last = assignment.find(topic, partition);
    }
    let Some(from) = last else { return Ok(None) };
    if !from.advance(offset) {
        return Err(log_replaced(topic, Some(partition)));
    }
    let (message, _) = to_message(record, &from.topic, &from.incarnation, None, &OwnHeaders::default());
    Ok(Some(BatchRecord { from: Arc::clone(from), offset, message }))
}
